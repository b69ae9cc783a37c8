use super::*;
use crate::facts::KeptState;
use crate::image::machine_image::MachineShape;
use crate::store::checkpoint_record::{first, owner};
use crate::store::vault::StoredHeader;
use snapshot_format::{BlobRef, Digest};

fn taken(pages: u64) -> CheckpointFacts {
    CheckpointFacts {
        kept: KeptState::Memory,
        processes: Vec::new(),
        pages,
        blocks: 1,
    }
}

/// Takes a checkpoint of so many bytes; its header as it would be read back.
fn take(
    tree: &Arc<CheckpointTree>,
    name: Option<&str>,
    bytes: u8,
) -> (CheckpointView, StoredHeader) {
    let room = tree.reserve(name, 64).unwrap();
    let coming = room.record("ibox", taken(u64::from(bytes))).unwrap();
    let blob = BlobRef {
        digest: Digest([bytes; 32]),
        size: bytes.into(),
    };
    let header = StoredHeader {
        id: coming.stored().clone(),
        record: coming.record.clone(),
        shape: MachineShape {
            vcpus: 1,
            memory_mib: 128,
            disk_size: 1 << 20,
        },
        blobs: vec![blob.clone()],
    };
    (room.fill(coming.node(vec![blob])).unwrap(), header)
}

fn shape(tree: &CheckpointTree) -> Vec<(String, Option<String>)> {
    let all = tree.listing().checkpoints;
    all.into_iter().map(|seen| (seen.id, seen.parent)).collect()
}

#[test]
fn a_tree_grows_where_the_sandbox_stands_and_comes_back_from_the_disk() {
    let tree = Arc::new(CheckpointTree::default());
    let (a, header_a) = take(&tree, Some("a"), 1);
    let (b, header_b) = take(&tree, None, 2);
    tree.set_current(&tree.ancestry(Some(&a.id)));
    let (c, header_c) = take(&tree, Some("c"), 2);
    assert_eq!((a.parent, b.parent.as_ref()), (None, Some(&a.id)));
    assert_eq!(c.parent.as_ref(), Some(&a.id));
    let listing = tree.listing();
    assert_eq!(listing.current.as_ref(), Some(&c.id));
    assert_eq!(listing.bytes, 3, "what is shared is counted once");
    assert_eq!(tree.find("c").unwrap().id, c.id);
    assert_eq!(tree.find(&b.id).unwrap().id, b.id);
    assert!(tree.find("d").is_none());

    let mut again = trees(vec![header_c, header_a, header_b]);
    let again = again.remove("ibox").unwrap();
    assert_eq!(shape(&again), shape(&tree));
    again.set_current(&tree.current());
    assert_eq!(again.listing(), listing);
}

#[test]
fn who_goes_leaves_its_children_to_its_parent() {
    let tree = Arc::new(CheckpointTree::default());
    let (a, _) = take(&tree, None, 1);
    let (b, _) = take(&tree, None, 2);
    let (c, header_c) = take(&tree, None, 3);
    let line = tree.current();
    assert_eq!(line, [&*c.id, &*b.id, &*a.id]);
    assert!(tree.remove(&b.id).is_some() && tree.remove(&b.id).is_none());
    assert_eq!(shape(&tree)[1], (c.id.clone(), Some(a.id.clone())));
    assert!(tree.remove(&c.id).is_some());
    assert_eq!(tree.listing().current.as_ref(), Some(&a.id));
    tree.set_current(&line);
    assert_eq!(tree.listing().current.as_ref(), Some(&a.id));
    // A record whose ancestors are all gone begins at the beginning.
    let alone = trees(vec![header_c]).remove("ibox").unwrap();
    assert_eq!(shape(&alone), [(c.id, None)]);
}

#[test]
fn names_and_places_are_given_once() {
    let tree = Arc::new(CheckpointTree::default());
    let outcome = |name: Option<&str>, max| match tree.reserve(name, max) {
        Ok(_) => "ok",
        Err(EngineError::Conflict(_)) => "taken",
        Err(EngineError::TooManyCheckpoints { max: 1 }) => "full",
        Err(EngineError::Invalid(_)) => "bad",
        Err(other) => panic!("{other}"),
    };
    let room = tree.reserve(Some("a"), 2).unwrap();
    assert_eq!(outcome(Some("a"), 2), "taken", "it is coming");
    assert_eq!(outcome(Some("b"), 1), "full", "no place");
    drop(room);
    assert_eq!(outcome(Some("a"), 1), "ok");
    let (a, _) = take(&tree, Some("a"), 1);
    assert_eq!(
        (outcome(Some("a"), 2), outcome(Some(&a.id), 2)),
        ("taken", "taken")
    );
    for bad in ["", "a b", "ä", &"a".repeat(65)] {
        assert_eq!(outcome(Some(bad), 2), "bad", "{bad:?}");
    }
}

#[test]
fn nothing_is_added_after_the_end() {
    let tree = Arc::new(CheckpointTree::default());
    let (_, header) = take(&tree, None, 1);
    let room = tree.reserve(None, 64).unwrap();
    let coming = room.record("ibox", taken(1)).unwrap();
    let early = first("ibox", KeptState::Memory, Vec::new()).unwrap();
    assert!(
        tree.note_first(
            first("ibox", KeptState::Memory, Vec::new())
                .unwrap()
                .node(Vec::new())
        )
    );
    assert_eq!(tree.close(), [header.id, early.stored().clone()]);
    assert!(room.fill(coming.node(Vec::new())).is_none());
    assert!(!tree.note_first(early.node(Vec::new())));
    assert_eq!(tree.close(), []);
}

#[test]
fn damaged_records_are_left_out() {
    let tree = Arc::new(CheckpointTree::default());
    let (a, header) = take(&tree, Some("abc"), 1);
    let with = |from: &str, to: &str| {
        let text = String::from_utf8(header.record.clone()).unwrap();
        assert!(text.contains(from), "{text}");
        let record = text.replace(from, to).into_bytes();
        let (id, blobs, shape) = (header.id.clone(), Vec::new(), header.shape);
        trees(vec![StoredHeader {
            id,
            record,
            shape,
            blobs,
        }])
    };
    assert_eq!(with("abc", "abd").len(), 1);
    for (from, to) in [
        ("\"version\":1", "\"version\":2"),
        ("ibox", "iother"),
        (a.id.as_str(), "cother"),
        ("\"pages\":1", "\"pages\":-1"),
        ("abc", &"a".repeat(65)),
        ("}", ""),
    ] {
        assert_eq!(with(from, to).len(), 0, "{from} to {to}");
    }
    assert_eq!(owner(&header.id), Some("ibox"));
}

//! Numbers that stored snapshots rely on. If one of these fails, files in the field change their
//! meaning: raise the version of what changed, and keep a golden of the old one.

use crate::{LAYER_VERSION, MANIFEST_VERSION, SECTIONS_VERSION, UNIT};

const _: () = assert!(SECTIONS_VERSION == 1 && LAYER_VERSION == 2 && MANIFEST_VERSION == 2);
const _: () = assert!(UNIT == 4096);

#[cfg(test)]
mod test {
    use crate::manifest::test::sample;
    use crate::{
        LAYER_VERSION, LayerIndex, MANIFEST_VERSION, MAX_EXTENTS, MAX_LAYERS, MAX_MANIFEST,
        MAX_SECTION, MAX_SECTIONS, MAX_UNITS, SECTIONS_VERSION, Section, SectionFile, SectionName,
    };

    #[test]
    fn a_section_file_has_these_bytes() {
        let name = SectionName::new("vcpu.0").unwrap();
        let bytes = SectionFile::encode(&[Section {
            name,
            version: 1,
            payload: b"abc",
        }])
        .unwrap();
        assert_eq!(bytes.len(), 12 + 40 + 3);
        assert_eq!(crc32fast::hash(&bytes), 671_904_757);
    }

    #[test]
    fn a_layer_index_has_these_bytes() {
        let index = LayerIndex::new(64, [(0, 2, true), (8, 1, false)]).unwrap();
        let (mut bytes, table) = index.encode();
        assert_eq!((bytes.len(), table.len()), (4096, 32));
        bytes.extend(table);
        assert_eq!(crc32fast::hash(&bytes), 819_797_117);
    }

    /// The page that draws the files says these numbers too.
    #[test]
    fn the_page_is_true() {
        let page = include_str!("../../FORMAT.md");
        for line in [
            format!("| `MAX_MANIFEST` | {MAX_MANIFEST} |"),
            format!("| `MAX_LAYERS` | {MAX_LAYERS} |"),
            format!("| `MAX_SECTIONS` | {MAX_SECTIONS} |"),
            format!("| `MAX_SECTION` | {MAX_SECTION} |"),
            format!("| `MAX_UNITS` | {MAX_UNITS} |"),
            format!("| `MAX_EXTENTS` | {MAX_EXTENTS} |"),
            format!("| manifest, and what digests are | {MANIFEST_VERSION} |"),
            format!("| section file | {SECTIONS_VERSION} |"),
            format!("| layer file, and sums | {LAYER_VERSION} |"),
        ] {
            assert!(page.contains(&line), "FORMAT.md lacks {line}");
        }
    }

    #[test]
    fn a_manifest_has_these_bytes() {
        assert_eq!(crc32fast::hash(&sample().encode().unwrap()), 2_821_254_453);
    }
}

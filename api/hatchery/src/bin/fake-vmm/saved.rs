//! A stand-in's snapshot: valid files with a history in page 0 of the memory and in block 0 of the
//! disk, one line per machine that was saved and how often by then (`name.2`), and the path of the
//! agent in the section file.

use control::{BootSource, FdName, SaveSpec, Saved, VmSpec};
use snapshot_format::{LayerIndex, Section, SectionFile, SectionName};
use std::cell::Cell;
use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const PAGE: usize = 4096;
const FIRST: &str = "fake-vmm\n";

/// What a machine begins with.
pub(crate) struct FakeStart {
    /// The program to run as the agent.
    pub(crate) agent: PathBuf,
    /// The machines it was copied from.
    history: String,
    /// How often this one was saved.
    saves: Cell<u32>,
}

impl FakeStart {
    /// Of the machine that `spec` describes.
    pub(crate) fn new(spec: &VmSpec, fds: &[OwnedFd]) -> Result<Self, Box<dyn Error>> {
        let file = |name: FdName| fds[usize::from(name)].try_clone().map(File::from);
        let (memory, state, layer) = match spec.boot_source {
            BootSource::Kernel { agent, .. } => {
                let agent = &fds[usize::from(agent)];
                return Ok(Self {
                    agent: std::fs::read_link(format!("/proc/self/fd/{}", agent.as_raw_fd()))?,
                    history: FIRST.into(),
                    saves: Cell::default(),
                });
            }
            BootSource::Snapshot {
                base_memory,
                state,
                delta_layer,
                ..
            } => (base_memory, state, delta_layer),
            BootSource::DemandPaged { .. } => return Err("there is no memory here to bring".into()),
        };
        let mut bytes = Vec::new();
        file(state)?.read_to_end(&mut bytes)?;
        let agent = SectionFile::parse(&bytes)?.get("fake", 1)?;
        let mut history = text(&file(memory)?, 0)?;
        if let Some(layer) = layer {
            // Its first page comes after the index, which is padded to a page.
            history = text(&file(layer)?, 4096)?;
        }
        let parent = spec.disks().next().and_then(|disk| disk.parent);
        let disk = text(&file(parent.ok_or("no disk layer")?)?, 0)?;
        if disk != history {
            return Err(format!("memory says {history:?}, disk says {disk:?}").into());
        }
        let saved = PathBuf::from(std::str::from_utf8(agent)?);
        // What was saved on another machine goes on with this one's agent.
        let agent = match saved.exists() {
            true => saved,
            false => std::env::current_exe()?.with_file_name("hatchery-agent"),
        };
        Ok(Self {
            agent,
            history,
            saves: Cell::default(),
        })
    }

    /// Writes what [`FakeStart::new`] reads, in the first of so many pages of memory.
    pub(crate) fn save(
        &self,
        spec: &VmSpec,
        to: &SaveSpec,
        fds: &[OwnedFd],
        pages: u32,
    ) -> Result<Saved, Box<dyn Error>> {
        let file = |name: FdName| -> Result<File, Box<dyn Error>> {
            let fd = fds
                .get(usize::from(name))
                .ok_or("a descriptor is missing")?;
            Ok(fd.try_clone()?.into())
        };
        self.saves.set(self.saves.get() + 1);
        let line = format!("{}.{}", spec.sandbox_id, self.saves.get());
        let mut page = format!("{}{line}\n", self.history).into_bytes();
        page.resize(PAGE, 0);
        let index = LayerIndex::new(u64::from(spec.memory_mib) << 8, [(0, pages, true)])?;
        let mut memory = file(to.memory)?;
        let (header, table) = index.encode();
        let rest = vec![0; (usize::try_from(pages)? - 1) * PAGE];
        memory.write_all(&[&header[..], &page, &rest, &table].concat())?;
        let section = Section {
            name: SectionName::new("fake")?,
            version: 1,
            payload: self.agent.to_str().ok_or("an odd path")?.as_bytes(),
        };
        let mut sections = vec![section];
        for name in [snapshot_memory::TOUCHED, snapshot_memory::WRITTEN] {
            sections.push(Section {
                name: SectionName::new(name)?,
                version: snapshot_memory::PAGES_VERSION,
                payload: &[],
            });
        }
        file(to.state)?.write_all(&SectionFile::encode(&sections)?)?;
        for disk in &to.contents {
            file(*disk)?.write_all_at(&page, 0)?;
        }
        Ok(Saved {
            memory_pages: pages.into(),
            disk_blocks: 1,
            ..Saved::default()
        })
    }
}

fn text(file: &File, offset: u64) -> Result<String, Box<dyn Error>> {
    let mut page = vec![0; PAGE];
    file.read_exact_at(&mut page, offset)?;
    let text = String::from_utf8(page)?;
    let text = text.trim_end_matches('\0');
    if !text.starts_with(FIRST) {
        return Err("not the memory or disk of a stand-in".into());
    }
    Ok(text.to_owned())
}

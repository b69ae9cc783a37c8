//! The initial file system: a cpio archive with the agent as `/init`.
//!
//! Format "newc" (`Documentation/driver-api/early-userspace/buffer-format.rst`): per entry a
//! header of hexadecimal fields, the name, the contents, each padded to 4 bytes.

const DIRECTORY: u32 = 0o040_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const EXECUTABLE: u32 = 0o100_755;

/// One entry.
struct CpioEntry<'a> {
    name: &'a str,
    mode: u32,
    /// Major and minor number of a device.
    device: (u32, u32),
    contents: &'a [u8],
}

/// An archive with `/init`, and `/dev/console` for kernels that open it before anything runs.
pub(crate) fn build(init: &[u8]) -> Vec<u8> {
    let entries = [
        CpioEntry {
            name: "dev",
            mode: DIRECTORY,
            device: (0, 0),
            contents: &[],
        },
        CpioEntry {
            name: "dev/console",
            mode: CHARACTER_DEVICE,
            device: (5, 1),
            contents: &[],
        },
        CpioEntry {
            name: "init",
            mode: EXECUTABLE,
            device: (0, 0),
            contents: init,
        },
        CpioEntry {
            name: "TRAILER!!!",
            mode: 0,
            device: (0, 0),
            contents: &[],
        },
    ];
    let mut archive = Vec::with_capacity(init.len() + 1024);
    for (number, entry) in (1..).zip(&entries) {
        append(&mut archive, number, entry);
    }
    archive
}

fn append(archive: &mut Vec<u8>, number: u32, entry: &CpioEntry<'_>) {
    let links = 1;
    let size = entry.contents.len();
    let name = entry.name.len() + 1;
    let (major, minor) = entry.device;
    // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    let header = format!(
        "070701{number:08x}{:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}{:08x}{:08x}{major:08x}\
         {minor:08x}{name:08x}{:08x}",
        entry.mode, 0, 0, 0, 0, 0, 0
    );
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(entry.name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(entry.contents);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod test {
    use super::*;

    /// Reads an archive back as (name, mode, contents).
    fn parse(mut rest: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&rest[..6], b"070701");
            let field = |i: usize| {
                let text = std::str::from_utf8(&rest[6 + i * 8..14 + i * 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name) = (field(1), field(6), field(11));
            let body = (110 + name).next_multiple_of(4);
            let text = String::from_utf8(rest[110..110 + name - 1].to_vec()).unwrap();
            if text == "TRAILER!!!" {
                return entries;
            }
            let mode = u32::try_from(mode).unwrap();
            entries.push((text, mode, rest[body..body + size].to_vec()));
            rest = &rest[(body + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn the_agent_is_init() {
        let entries = parse(&build(b"\x7fELF!"));
        let names: Vec<_> = entries.iter().map(|e| e.0.as_str()).collect();
        assert_eq!(names, ["dev", "dev/console", "init"]);
        assert_eq!(
            (entries[2].1, &entries[2].2[..]),
            (EXECUTABLE, &b"\x7fELF!"[..])
        );
    }
}

//! Compiled kernels: from an artifact, from a folder of the user's cache, from NVRTC, whichever has them first.

use super::nvrtc::Nvrtc;
use super::{CudaError, SOURCES, source};
use std::path::{Path, PathBuf};

/// All sources compiled for one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubins {
    /// Such as `sm_90`.
    pub arch: String,
    /// Hash of the sources that they were compiled from.
    pub key: String,
    /// In the order of [`SOURCES`].
    pub images: Vec<Vec<u8>>,
}

impl Cubins {
    /// Compiles all sources.
    ///
    /// # Errors
    /// [`CudaError::NoNvrtc`], [`CudaError::Compile`].
    pub fn compile(arch: &str, nvrtc: Option<&Path>) -> Result<Cubins, CudaError> {
        let nvrtc = Nvrtc::find(nvrtc, arch)?;
        let images = SOURCES.iter().map(|name| Ok(nvrtc.compile(name, arch)?.cubin));
        Ok(Cubins { arch: arch.into(), key: key(), images: images.collect::<Result<_, CudaError>>()? })
    }

    /// Whether a GPU of that compute capability runs them, and this program knows how to call them.
    pub fn serves(&self, (major, minor): (i32, i32)) -> bool {
        let digits = self.arch.trim_start_matches("sm_");
        let plain = digits.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let Some((of_major, of_minor)) = plain.parse::<i32>().ok().map(|n| (n / 10, n % 10)) else { return false };
        // code of one major version runs on later minor ones, that with a letter on its own only
        let fits = of_major == major && if plain == digits { of_minor <= minor } else { of_minor == minor };
        fits && self.key == key() && self.images.len() == SOURCES.len()
    }

    /// Those in `folder`, if all are there.
    pub fn load(folder: &Path, arch: &str) -> Option<Cubins> {
        let images =
            SOURCES.iter().map(|name| std::fs::read(file(folder, name, arch)).ok().filter(|image| !image.is_empty()));
        Some(Cubins { arch: arch.into(), key: key(), images: images.collect::<Option<_>>()? })
    }

    /// Writes them into `folder`, each file complete or not at all.
    ///
    /// # Errors
    /// What the system says.
    pub fn save(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        for (name, image) in SOURCES.iter().zip(&self.images) {
            let path = file(folder, name, &self.arch);
            let part = path.with_extension(format!("part{}", std::process::id()));
            std::fs::write(&part, image)?;
            std::fs::rename(&part, &path)?;
        }
        Ok(())
    }
}

impl Cubins {
    /// Those of several architectures as bytes: how many, then for each its architecture, its key and its images, behind their lengths.
    pub fn pack(all: &[Cubins]) -> Vec<u8> {
        let mut bytes = (all.len() as u32).to_le_bytes().to_vec();
        for one in all {
            let parts =
                [one.arch.as_bytes(), one.key.as_bytes()].into_iter().chain(one.images.iter().map(Vec::as_slice));
            bytes.extend((one.images.len() as u32).to_le_bytes());
            for part in parts {
                bytes.extend((part.len() as u32).to_le_bytes());
                bytes.extend(part);
            }
        }
        bytes
    }

    /// Inverse of [`Cubins::pack`]; `None` for anything else.
    pub fn unpack(bytes: &[u8]) -> Option<Vec<Cubins>> {
        let mut rest = bytes;
        let mut all = Vec::new();
        for _ in 0..number(&mut rest)? {
            let count = number(&mut rest)?;
            let arch = String::from_utf8(part(&mut rest)?.to_vec()).ok()?;
            let key = String::from_utf8(part(&mut rest)?.to_vec()).ok()?;
            let images = (0..count).map(|_| Some(part(&mut rest)?.to_vec())).collect::<Option<_>>()?;
            all.push(Cubins { arch, key, images });
        }
        rest.is_empty().then_some(all)
    }
}

fn number(rest: &mut &[u8]) -> Option<u32> {
    let (first, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_le_bytes(*first))
}

fn part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = number(rest)? as usize;
    let (part, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(part)
}

fn file(folder: &Path, name: &str, arch: &str) -> PathBuf {
    folder.join(format!("{name}-{arch}-{}.cubin", key()))
}

/// Hash of all sources.
pub fn key() -> String {
    let mut hasher = blake3::Hasher::new();
    SOURCES.iter().for_each(|name| {
        hasher.update(source(name).as_bytes());
    });
    hasher.finalize().to_hex()[..16].to_string()
}

/// Where the user's programs keep what can be made again: `cqc/cubin` in `XDG_CACHE_HOME` or `~/.cache`.
pub fn cache_folder() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(base.join("cqc").join("cubin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cubins(arch: &str) -> Cubins {
        Cubins { arch: arch.into(), key: key(), images: SOURCES.iter().map(|name| name.as_bytes().to_vec()).collect() }
    }

    #[test]
    fn packed_kernels_come_back_and_nothing_else_does() {
        let all = [cubins("sm_80"), cubins("sm_90a")];
        let bytes = Cubins::pack(&all);
        assert_eq!(Cubins::unpack(&bytes).unwrap(), all);
        for end in 0..bytes.len() {
            assert_eq!(Cubins::unpack(&bytes[..end]), None, "{end} bytes");
        }
        assert_eq!(Cubins::unpack(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(Cubins::unpack(&[255; 12]), None);
    }

    #[test]
    fn kernels_serve_later_minor_versions_of_their_major_one() {
        let serves = |arch: &str, capability| cubins(arch).serves(capability);
        assert!(
            serves("sm_80", (8, 0)) && serves("sm_80", (8, 9)) && serves("sm_90a", (9, 0)) && serves("sm_120", (12, 1))
        );
        assert!(
            !serves("sm_86", (8, 0)) && !serves("sm_80", (9, 0)) && !serves("sm_120a", (12, 1)) && !serves("", (8, 0))
        );
        assert!(!Cubins { key: "other".into(), ..cubins("sm_80") }.serves((8, 0)));
    }

    #[test]
    fn kept_kernels_are_found_again() {
        let folder = std::env::temp_dir().join(format!("cqc-cubin-{}", std::process::id()));
        assert_eq!(Cubins::load(&folder, "sm_80"), None);
        cubins("sm_80").save(&folder).unwrap();
        assert_eq!(Cubins::load(&folder, "sm_80"), Some(cubins("sm_80")));
        assert_eq!(Cubins::load(&folder, "sm_90"), None);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

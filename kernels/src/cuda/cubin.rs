//! Compiled kernels: from an artifact, from a folder of the user's cache, from NVRTC, whichever has
//! them first.

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
    /// [`CudaError::Compile`].
    pub fn compile(arch: &str, nvrtc: Nvrtc) -> Result<Cubins, CudaError> {
        let images = SOURCES.iter().map(|name| Ok(nvrtc.compile(name, arch)?.cubin));
        Ok(Cubins {
            arch: arch.into(),
            key: key(),
            images: images.collect::<Result<_, CudaError>>()?,
        })
    }

    /// Whether a GPU of that compute capability runs them, and this program knows how to call them.
    pub fn serves(&self, (major, minor): (i32, i32)) -> bool {
        let digits = self.arch.trim_start_matches("sm_");
        let plain = digits.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let Some((of_major, of_minor)) = plain.parse::<i32>().ok().map(|n| (n / 10, n % 10)) else {
            return false;
        };
        // code of one major version runs on later minor ones, that with a letter on its own only
        let fits = of_major == major
            && if plain == digits { of_minor <= minor } else { of_minor == minor };
        fits && self.key == key() && self.images.len() == SOURCES.len()
    }

    /// Hash of the images.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for image in &self.images {
            hasher.update(&(image.len() as u64).to_le_bytes()).update(image);
        }
        *hasher.finalize().as_bytes()
    }

    /// Those in `folder` that NVRTC of this version has made, if all are there; without a version
    /// those of the newest.
    pub fn load(folder: &Path, arch: &str, nvrtc: Option<(i32, i32)>) -> Option<Cubins> {
        let versions = nvrtc.map_or_else(|| kept_versions(folder, arch), |version| vec![version]);
        versions.into_iter().rev().find_map(|version| {
            let read = |name| {
                std::fs::read(file(folder, name, arch, version))
                    .ok()
                    .filter(|image| !image.is_empty())
            };
            let images = SOURCES.iter().map(|name| read(name)).collect::<Option<_>>()?;
            Some(Cubins { arch: arch.into(), key: key(), images })
        })
    }

    /// Writes what NVRTC of that version has made into `folder`, each file complete or not at all.
    ///
    /// # Errors
    /// What the system says.
    pub fn save(&self, folder: &Path, nvrtc: (i32, i32)) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        for (name, image) in SOURCES.iter().zip(&self.images) {
            let path = file(folder, name, &self.arch, nvrtc);
            let part = path.with_extension(format!("part{}", std::process::id()));
            std::fs::write(&part, image)?;
            std::fs::rename(&part, &path)?;
        }
        Ok(())
    }
}

impl Cubins {
    /// Those of several architectures as bytes: how many, then for each its architecture, its key
    /// and its images, after their lengths.
    pub fn pack(all: &[Cubins]) -> Vec<u8> {
        let mut bytes = (all.len() as u32).to_le_bytes().to_vec();
        for one in all {
            let parts = [one.arch.as_bytes(), one.key.as_bytes()]
                .into_iter()
                .chain(one.images.iter().map(Vec::as_slice));
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
            let images =
                (0..count).map(|_| Some(part(&mut rest)?.to_vec())).collect::<Option<_>>()?;
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

fn file(folder: &Path, name: &str, arch: &str, (major, minor): (i32, i32)) -> PathBuf {
    folder.join(format!("{name}-{arch}-{}-nvrtc{major}.{minor}.cubin", key()))
}

/// Versions of NVRTC that have made the first source's file in `folder`, ascending.
fn kept_versions(folder: &Path, arch: &str) -> Vec<(i32, i32)> {
    let begin = format!("{}-{arch}-{}-nvrtc", SOURCES[0], key());
    let names = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().into_string().ok());
    let version = |name: String| {
        let (major, minor) = name.strip_prefix(&begin)?.strip_suffix(".cubin")?.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let mut versions: Vec<_> = names.filter_map(version).collect();
    versions.sort();
    versions
}

/// Hash of all sources.
pub fn key() -> String {
    let mut hasher = blake3::Hasher::new();
    SOURCES.iter().for_each(|name| {
        hasher.update(source(name).as_bytes());
    });
    hasher.finalize().to_hex()[..16].to_string()
}

/// Where the user's programs keep what can be made again: `cqc/cubin` in `XDG_CACHE_HOME` or
/// `~/.cache`.
pub fn cache_folder() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(base.join("cqc").join("cubin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cubins(arch: &str) -> Cubins {
        Cubins {
            arch: arch.into(),
            key: key(),
            images: SOURCES.iter().map(|name| name.as_bytes().to_vec()).collect(),
        }
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
            serves("sm_80", (8, 0))
                && serves("sm_80", (8, 9))
                && serves("sm_90a", (9, 0))
                && serves("sm_120", (12, 1))
        );
        assert!(
            !serves("sm_86", (8, 0))
                && !serves("sm_80", (9, 0))
                && !serves("sm_120a", (12, 1))
                && !serves("", (8, 0))
        );
        assert!(!Cubins { key: "other".into(), ..cubins("sm_80") }.serves((8, 0)));
    }

    #[test]
    fn kept_kernels_are_found_again_by_the_compiler_that_made_them() {
        let folder = std::env::temp_dir().join(format!("cqc-cubin-{}", std::process::id()));
        assert_eq!(Cubins::load(&folder, "sm_80", None), None);
        cubins("sm_80").save(&folder, (13, 0)).unwrap();
        let newer = Cubins { images: vec![vec![1]; SOURCES.len()], ..cubins("sm_80") };
        newer.save(&folder, (13, 10)).unwrap();
        assert_eq!(Cubins::load(&folder, "sm_80", Some((13, 0))), Some(cubins("sm_80")));
        assert_eq!(Cubins::load(&folder, "sm_80", Some((13, 10))), Some(newer.clone()));
        assert_eq!(Cubins::load(&folder, "sm_80", Some((12, 8))), None);
        // without a compiler there is nothing to prefer but the newest
        assert_eq!(Cubins::load(&folder, "sm_80", None), Some(newer));
        assert_eq!(Cubins::load(&folder, "sm_90", None), None);
        std::fs::remove_file(file(&folder, SOURCES[1], "sm_80", (13, 10))).unwrap();
        assert_eq!(Cubins::load(&folder, "sm_80", None), Some(cubins("sm_80")));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

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

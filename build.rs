//! Tells the library what it is built from: `CQC_SOURCES` is a hash of all sources of the workspace
//! that are there, so that what depends on them (see `src/identity.rs`) can say so. A version alone
//! stays the same from one release to the next.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let mut files = Vec::new();
    // the other crates are not there when this one is built on its own
    for folder in ["src", "proto/src", "kernels/src", "kernels/cuda", "passes/src", "runtime/src"] {
        let folder = root.join(folder);
        if folder.is_dir() {
            println!("cargo:rerun-if-changed={}", folder.display());
            collect(&folder, &mut files)?;
        }
    }
    files.sort();
    let mut hash = FNV_BASIS;
    for file in &files {
        let name = file.strip_prefix(&root).unwrap_or(file).to_string_lossy().replace('\\', "/");
        add(&mut hash, name.as_bytes());
        add(&mut hash, &fs::read(file)?);
    }
    println!("cargo:rustc-env=CQC_SOURCES={hash:016x}");
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { collect(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

/// FNV-1a of 64 bits.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

fn add(hash: &mut u64, bytes: &[u8]) {
    let len = (bytes.len() as u64).to_le_bytes();
    for byte in len.iter().chain(bytes) {
        *hash = (*hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
    }
}

//! Compiles the kernels for a GPU with NVRTC, NVIDIA's compiler library. Needs no GPU and no
//! driver.

use super::{CudaError, SOURCES, source};
use cudarc::nvrtc::{result, sys};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Options of every compilation, but for the architecture.
const OPTIONS: [&str; 2] = ["--std=c++17", "--ptxas-options=-v"];

/// Proof that NVRTC is loaded: only [`Nvrtc::find`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Nvrtc(());

/// One source, compiled for one architecture.
#[derive(Clone, Debug)]
pub struct CompiledSource {
    /// Code for the architecture.
    pub cubin: Vec<u8>,
    /// The same as PTX.
    pub ptx: String,
    /// What the assembler reports: registers, spills, shared memory of every kernel.
    pub log: String,
}

impl Nvrtc {
    /// Looks for the library: at `path` (a folder, or a file in it), where the environment variable
    /// `CQC_NVRTC` says, where the system looks for libraries.
    ///
    /// # Errors
    /// [`CudaError::NoNvrtc`], which says that kernels for `arch` need it.
    pub fn find(path: Option<&Path>, arch: &str) -> Result<Nvrtc, CudaError> {
        static LOADED: OnceLock<Vec<libloading::Library>> = OnceLock::new();
        let path =
            path.map(Path::to_owned).or_else(|| std::env::var_os("CQC_NVRTC").map(PathBuf::from));
        if let Some(path) = &path {
            // kept open, so that the loader knows them by their bare names from now on
            LOADED.get_or_init(|| load_from(path));
        }
        // SAFETY: NVRTC's initialisers have no preconditions.
        if unsafe { sys::is_culib_present() } {
            return Ok(Nvrtc(()));
        }
        let looked = path.map_or_else(|| "this machine".into(), |p| format!("`{}`", p.display()));
        Err(CudaError::NoNvrtc { arch: arch.into(), looked })
    }

    /// Version of the library, major and minor.
    pub fn version(self) -> (i32, i32) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: `self` proves that the library is there; it writes two numbers.
        unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
        (major, minor)
    }

    /// Compiles one of [`SOURCES`] for an architecture such as `sm_90`.
    ///
    /// # Errors
    /// [`CudaError::Compile`] with NVRTC's words, also for an architecture that it does not know.
    ///
    /// # Panics
    /// When there is no such source.
    pub fn compile(self, name: &str, arch: &str) -> Result<CompiledSource, CudaError> {
        assert!(SOURCES.contains(&name), "there is no source `{name}`");
        let error =
            |log: String| CudaError::Compile { source_name: name.into(), arch: arch.into(), log };
        let text = CString::new(source(name)).expect("sources hold no zero");
        let file = CString::new(format!("{name}.cu")).expect("names hold no zero");
        let mut options = OPTIONS.map(String::from).to_vec();
        let known = arch.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !known {
            return Err(error("no such architecture".into()));
        }
        options.push(format!("--gpu-architecture={arch}"));
        let program =
            result::create_program(&text, Some(&file)).map_err(|e| error(e.to_string()))?;
        // SAFETY: the program was just made, and is destroyed after its last use; sizes are asked
        // for before buffers are filled.
        unsafe {
            let done = result::compile_program(program, &options);
            let log = result::get_program_log(program).map(|log| words(&log)).unwrap_or_default();
            let compiled = match done {
                Ok(()) => read(program, log).map_err(|e| error(e.to_string())),
                Err(e) => Err(error(if log.is_empty() { e.to_string() } else { log })),
            };
            let _ = result::destroy_program(program); // a leak at worst
            compiled
        }
    }
}

/// The results of a program.
///
/// # Safety
/// It was compiled and not destroyed.
unsafe fn read(
    program: sys::nvrtcProgram,
    log: String,
) -> Result<CompiledSource, result::NvrtcError> {
    // SAFETY: the caller's promise; the buffer has the size that was asked for.
    unsafe {
        let mut size = 0;
        sys::nvrtcGetCUBINSize(program, &mut size).result()?;
        let mut cubin = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result()?;
        Ok(CompiledSource { cubin, ptx: words(&result::get_ptx(program)?), log })
    }
}

fn words(text: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = text.iter().map(|&c| c as u8).take_while(|&b| b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Opens the builtins that NVRTC looks for by name, then NVRTC itself.
fn load_from(path: &Path) -> Vec<libloading::Library> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let named = |prefix: &str| -> Option<PathBuf> {
        let entries = std::fs::read_dir(folder).ok()?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut found: Vec<String> =
            names.filter(|name| name.starts_with(prefix) && !name.contains(".alt.")).collect();
        found.sort();
        Some(folder.join(found.pop()?))
    };
    let paths = [named("libnvrtc-builtins.so"), named("libnvrtc.so")];
    // SAFETY: NVRTC's initialisers have no preconditions.
    paths
        .into_iter()
        .flatten()
        .filter_map(|path| unsafe { libloading::Library::new(path) }.ok())
        .collect()
}

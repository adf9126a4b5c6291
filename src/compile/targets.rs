//! Compiles the CUDA kernels that an artifact brings along.

use super::CompileError;
use crate::recipe::CudaTarget;

/// Kernels for the targets, packed as an artifact holds them; `None` without targets.
#[cfg(feature = "cuda")]
pub(super) fn compile_kernels(targets: &[CudaTarget]) -> Result<Option<Vec<u8>>, CompileError> {
    use cqc_kernels::cuda::cubin::Cubins;
    use cqc_kernels::cuda::nvrtc::Nvrtc;
    let compile = |target: &CudaTarget| {
        let compiled =
            Nvrtc::find(None, &target.arch).and_then(|nvrtc| Cubins::compile(&target.arch, nvrtc));
        compiled.map_err(|e| CompileError::Target { reason: e.to_string() })
    };
    let all = targets.iter().map(compile).collect::<Result<Vec<_>, _>>()?;
    Ok((!all.is_empty()).then(|| Cubins::pack(&all)))
}

#[cfg(not(feature = "cuda"))]
pub(super) fn compile_kernels(targets: &[CudaTarget]) -> Result<Option<Vec<u8>>, CompileError> {
    match targets {
        [] => Ok(None),
        _ => Err(CompileError::Target {
            reason: "this program was built without the feature `cuda`".into(),
        }),
    }
}

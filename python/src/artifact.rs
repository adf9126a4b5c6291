//! Artifacts.

use super::errors;
use super::looped::Loop;
use cachequant::runtime::artifact::ArtifactOptions;
use cachequant::runtime::engine::EngineOptions;
use cachequant::runtime::{self, DenoiserOptions, Device};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;

/// An opened `.cq` file.
#[pyclass(frozen, module = "cachequant._cachequant")]
pub struct Artifact {
    inner: Arc<runtime::Artifact>,
}

#[pymethods]
impl Artifact {
    /// Opens a file; `map` reads its weights from the mapped file.
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf, map: bool) -> PyResult<Artifact> {
        let options = ArtifactOptions { map, ..ArtifactOptions::default() };
        let opened = py.detach(|| runtime::Artifact::open_with(&path, &options));
        let inner = opened.map_err(|e| errors::artifact(&e))?;
        Ok(Artifact { inner: Arc::new(inner) })
    }

    /// Opens an artifact in memory.
    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: Vec<u8>) -> PyResult<Artifact> {
        let opened = py.detach(|| runtime::Artifact::from_bytes(data));
        Ok(Artifact { inner: Arc::new(opened.map_err(|e| errors::artifact(&e))?) })
    }

    /// What the artifact is, as JSON.
    fn info(&self) -> PyResult<String> {
        let info = self.inner.info().map_err(|e| errors::artifact_text(&e.to_string()))?;
        serde_json::to_string(&info).map_err(|e| errors::artifact_text(&e.to_string()))
    }

    /// Opens a loop for `batch` samples at once.
    #[expect(clippy::too_many_arguments, reason = "named arguments in Python")]
    #[pyo3(signature = (batch, threads=None, steps=None, timesteps=None, guidance=None, device="auto"))]
    fn open_loop(
        &self,
        py: Python<'_>,
        batch: usize,
        threads: Option<usize>,
        steps: Option<usize>,
        timesteps: Option<Vec<f64>>,
        guidance: Option<f32>,
        device: &str,
    ) -> PyResult<Loop> {
        let device = match device {
            "auto" => Device::Auto,
            "cpu" => Device::Cpu,
            "cuda" => Device::Cuda,
            other => {
                let text = format!("device {other:?}: expected \"auto\", \"cpu\" or \"cuda\"");
                return Err(PyValueError::new_err(text));
            }
        };
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let engine = EngineOptions {
            batch,
            threads: threads.unwrap_or_else(cores),
            ..EngineOptions::default()
        };
        let options = DenoiserOptions {
            steps,
            timesteps,
            guidance,
            device,
            engine,
            ..DenoiserOptions::default()
        };
        let opened = py.detach(|| self.inner.denoiser(&options));
        Ok(Loop::new(opened.map_err(|e| errors::request(&e))?))
    }
}

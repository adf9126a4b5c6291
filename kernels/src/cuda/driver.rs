//! The kernels on a GPU, through the CUDA driver's library, which is opened when the first device
//! is.

use super::cubin::{Cubins, cache_folder};
use super::nvrtc::Nvrtc;
use super::{CudaError, Device, KERNELS, Launch, Memory, Recorded, SOURCES, verify};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{
    self, CUdevice_attribute, CUfunction_attribute, CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use cudarc::driver::{CudaContext, CudaFunction, CudaGraph, CudaStream};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What kernels are made for at least.
const NEEDS: (i32, i32) = (8, 0);
/// CUDA 12, the oldest major version of drivers that is looked at.
const DRIVER: i32 = 12000;
/// Shared memory that a block may ask for: what sm_86 has.
const MAX_SHARED: i32 = 99 << 10;

/// How a GPU is opened.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// Compiled kernels, those of an artifact.
    pub cubins: Vec<Cubins>,
    /// Where compiled kernels are kept; none: nowhere.
    pub cache: Option<PathBuf>,
    /// Where NVRTC is looked for first.
    pub nvrtc: Option<PathBuf>,
    /// Whether the kernels' primitives are tried before anything else is, once per process and
    /// kernels. Without it wrong results are possible: for programs that look for them.
    pub verify: bool,
}

impl Default for GpuOptions {
    fn default() -> Self {
        GpuOptions { cubins: Vec::new(), cache: cache_folder(), nvrtc: None, verify: true }
    }
}

/// What is known of a GPU without compiling anything for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// Its name, as the driver gives it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// All memory of the GPU, in bytes.
    pub memory: usize,
    /// Version of CUDA that the driver speaks, 1000 · major + 10 · minor.
    pub driver: i32,
}

impl GpuInfo {
    /// Its architecture, such as `sm_90`.
    pub fn arch(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }
}

/// The first GPU of this machine.
///
/// # Errors
/// [`CudaError::NoCudaDriver`], [`CudaError::NoCudaDevice`], [`CudaError::Driver`].
pub fn find() -> Result<GpuInfo, CudaError> {
    let context = context()?;
    let name = context.name().map_err(error("asking for the name"))?;
    let capability = context.compute_capability().map_err(error("asking for the compute capability"))?;
    let memory = context.total_mem().map_err(error("asking for the memory"))?;
    let mut driver = 0;
    // SAFETY: `context` proves that the library is there; it writes one number.
    unsafe { sys::cuDriverGetVersion(&mut driver).result() }.map_err(error("asking for the driver's version"))?;
    Ok(GpuInfo { name, capability, memory, driver })
}

fn context() -> Result<Arc<CudaContext>, CudaError> {
    // SAFETY: the driver's initialisers have no preconditions. Without this look cudarc panics
    // where there is no driver.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoCudaDriver);
    }
    CudaContext::new(0).map_err(|e| CudaError::NoCudaDevice { reason: words(e) })
}

fn words(e: DriverError) -> String {
    format!("{:?}", e.0)
}

fn error(what: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |e| CudaError::Driver { what, reason: words(e) }
}

/// Hashes of kernels whose primitives were found right by this process.
static VERIFIED: Mutex<Vec<[u8; 32]>> = Mutex::new(Vec::new());

/// A GPU with all kernels loaded.
pub struct Gpu {
    id: u64,
    info: GpuInfo,
    multiprocessors: usize,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    functions: HashMap<&'static str, CudaFunction>,
}

impl Gpu {
    /// Opens the first GPU, finds kernels for it, and tries their primitives.
    ///
    /// # Errors
    /// [`CudaError`], each of them.
    pub fn open(options: &GpuOptions) -> Result<Arc<Gpu>, CudaError> {
        let info = find()?;
        check(&info)?;
        let cubins = cubins(&info, options)?;
        let kernels = cubins.hash();
        let context = context()?;
        // SAFETY: only one stream is used, so there is nothing that events would order. They would
        // break the capture of graphs.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(error("making a stream"))?;
        let count = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        let multiprocessors = count.map_err(error("counting multiprocessors"))?.max(1) as usize;
        let mut functions = HashMap::new();
        for (name, image) in SOURCES.iter().zip(cubins.images) {
            let module = context.load_module(Ptx::from_binary(image)).map_err(error("loading kernels"))?;
            for kernel in KERNELS.iter().filter(|k| k.source == *name) {
                let function = module.load_function(kernel.name).map_err(error("finding a kernel"))?;
                let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                function.set_attribute(attribute, MAX_SHARED).map_err(error("asking for shared memory"))?;
                functions.insert(kernel.name, function);
            }
        }
        let id = Arc::as_ptr(&context) as u64;
        let gpu = Arc::new(Gpu { id, info, multiprocessors, context, stream, functions });
        let mut verified = VERIFIED.lock().unwrap_or_else(PoisonError::into_inner);
        if options.verify && !verified.contains(&kernels) {
            verify(&*gpu)?;
            verified.push(kernels);
        }
        Ok(gpu)
    }

    /// What is known of it.
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(error("choosing the device"))
    }
}

/// Refuses what kernels are not made for.
fn check(info: &GpuInfo) -> Result<(), CudaError> {
    if info.capability < NEEDS {
        let need = format!("compute capability {}.{}", NEEDS.0, NEEDS.1);
        return Err(CudaError::CudaTooOld { need, have: format!("{}.{}", info.capability.0, info.capability.1) });
    }
    if info.driver < DRIVER {
        let version = |v: i32| format!("a driver for CUDA {}.{}", v / 1000, v % 1000 / 10);
        return Err(CudaError::CudaTooOld { need: version(DRIVER), have: version(info.driver) });
    }
    Ok(())
}

fn cubins(info: &GpuInfo, options: &GpuOptions) -> Result<Cubins, CudaError> {
    if let Some(given) = options.cubins.iter().find(|c| c.serves(info.capability)) {
        return Ok(given.clone());
    }
    let arch = info.arch();
    let nvrtc = Nvrtc::find(options.nvrtc.as_deref(), &arch);
    let version = nvrtc.as_ref().ok().map(|nvrtc| nvrtc.version());
    if let Some(kept) = options.cache.as_ref().and_then(|folder| Cubins::load(folder, &arch, version)) {
        return Ok(kept);
    }
    let nvrtc = nvrtc?;
    let made = Cubins::compile(&arch, nvrtc)?;
    if let Some(folder) = &options.cache {
        // a folder that cannot be written costs the next start some time
        let _ = made.save(folder, nvrtc.version());
    }
    Ok(made)
}

/// Frees a block of memory.
struct Block {
    address: u64,
    context: Arc<CudaContext>,
}

impl Drop for Block {
    fn drop(&mut self) {
        // an error here has been an error of some call before
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the address came from `malloc_sync` and is freed once; freeing waits for what
            // still uses it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

impl Device for Gpu {
    fn name(&self) -> String {
        format!("{} ({})", self.info.name, self.info.arch())
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn allocate(&self, bytes: usize) -> Result<Arc<Memory>, CudaError> {
        self.bind()?;
        // SAFETY: the context is bound to this thread.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(error("allocating memory"))?;
        let owner = Box::new(Block { address, context: Arc::clone(&self.context) });
        // SAFETY: the block was just allocated with so many bytes.
        unsafe { result::memset_d8_async(address, 0, bytes.max(1), self.stream.cu_stream()) }
            .map_err(error("clearing memory"))?;
        Ok(Arc::new(Memory { device: self.id, address, len: bytes, owner }))
    }

    fn write(&self, to: &Memory, offset: usize, bytes: &[u8]) -> Result<(), CudaError> {
        to.check(self.id, offset, bytes.len());
        if bytes.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: checked above; from pageable memory the call returns when the bytes have been
        // taken.
        unsafe { result::memcpy_htod_async(to.address + offset as u64, bytes, self.stream.cu_stream()) }
            .map_err(error("writing memory"))
    }

    fn read(&self, from: &Memory, offset: usize, bytes: &mut [u8]) -> Result<(), CudaError> {
        from.check(self.id, offset, bytes.len());
        self.bind()?;
        if !bytes.is_empty() {
            // SAFETY: checked above; the bytes are borrowed until the stream has been waited for.
            unsafe { result::memcpy_dtoh_async(bytes, from.address + offset as u64, self.stream.cu_stream()) }
                .map_err(error("reading memory"))?;
        }
        self.stream.synchronize().map_err(error("waiting for kernels"))
    }

    fn wait(&self) -> Result<(), CudaError> {
        self.bind()?;
        self.stream.synchronize().map_err(error("waiting for kernels"))
    }

    fn run(&self, launches: &[Launch]) -> Result<(), CudaError> {
        self.bind()?;
        for launch in launches {
            assert_eq!(launch.device, self.id, "a launch for another device");
            let kernel = launch.kernel;
            let function = self.functions[kernel.name].cu_function();
            let mut parameters = [launch.args.as_ptr().cast_mut().cast::<c_void>()];
            let (grid, block) = ((launch.grid[0], launch.grid[1], 1), (kernel.threads, 1, 1));
            // SAFETY: the kernel takes the struct that the launch was made with, which is copied by
            // this call; its operands were checked against memory that the launch keeps alive, and
            // freeing memory waits for kernels.
            unsafe {
                result::launch_kernel(
                    function,
                    grid,
                    block,
                    launch.shared_bytes,
                    self.stream.cu_stream(),
                    &mut parameters,
                )
            }
            .map_err(error(kernel.name))?;
        }
        Ok(())
    }

    fn record(&self, launches: Vec<Launch>) -> Result<Box<dyn Recorded>, CudaError> {
        self.bind()?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(error("recording a graph"))?;
        let recorded = self.run(&launches);
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream.end_capture(flags).map_err(error("recording a graph"))?;
        recorded?;
        let graph = graph.map(|graph| Mutex::new(OwnedGraph(graph)));
        Ok(Box::new(Graph { graph, launches }))
    }
}

/// A captured graph, and what keeps the memory it refers to.
struct Graph {
    /// None: it has no kernels.
    graph: Option<Mutex<OwnedGraph>>,
    launches: Vec<Launch>,
}

/// A graph that is used by one thread at a time.
struct OwnedGraph(CudaGraph);

// SAFETY: a graph may be used by any one thread at a time; it is moved with all that refers to it,
// and it is not `Sync`.
unsafe impl Send for OwnedGraph {}

impl Recorded for Graph {
    fn replay(&self) -> Result<(), CudaError> {
        let Some(graph) = &self.graph else { return Ok(()) };
        let graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        graph.0.launch().map_err(error("launching a graph"))
    }

    fn len(&self) -> usize {
        self.launches.len()
    }
}

//! A device, numbers on it, and the definitions to compare with.

use crate::common::Rng;
#[cfg(feature = "cuda")]
use cqc_kernels::cuda::driver::{Gpu, GpuOptions};
use cqc_kernels::cuda::{Device, ElementType, Launch, Operand, State};
use cqc_kernels::reference;
use cqc_proto::{DType, Op, Tensor};
use half::f16;
use std::sync::Arc;

pub struct Bench {
    pub device: Arc<dyn Device>,
    pub state: State,
}

/// Evaluations and slots that operands of tests have room for, and those that run.
pub const STEPS: usize = 3;
pub const SLOTS: usize = 2;
pub const STEP: usize = 2;
pub const SLOT: usize = 1;

/// Every device there is; where there has to be a GPU, it alone.
pub fn benches() -> Vec<Bench> {
    open(std::env::var_os("CQC_REQUIRE_CUDA").is_none())
}

/// Every device there is, the simulator first.
pub fn all_benches() -> Vec<Bench> {
    open(true)
}

#[cfg_attr(not(feature = "cuda-sim"), allow(unused_variables))]
fn open(simulator: bool) -> Vec<Bench> {
    let mut devices: Vec<Arc<dyn Device>> = vec![];
    #[cfg(feature = "cuda-sim")]
    if simulator {
        devices.push(Arc::new(cqc_kernels::cuda::simulator::Simulator));
    }
    #[cfg(feature = "cuda")]
    // also where its primitives are wrong: which, and how, is what these tests tell
    match Gpu::open(&GpuOptions { verify: false, ..GpuOptions::default() }) {
        Ok(gpu) => devices.push(gpu),
        Err(e) if std::env::var_os("CQC_REQUIRE_CUDA").is_some() => panic!("CQC_REQUIRE_CUDA: {e}"),
        Err(e) => println!("skipped on a GPU: {e}"),
    }
    let bench = |device: Arc<dyn Device>| {
        let state = State::new(&*device, STEPS, SLOTS).unwrap();
        state.set(&*device, STEP, SLOT).unwrap();
        Bench { device, state }
    };
    devices.into_iter().map(bench).collect()
}

impl Bench {
    /// Rows of f32 numbers as elements of a type, `ld` apart.
    pub fn put(&self, values: &[f32], cols: usize, ld: usize, element: ElementType) -> Operand {
        let mut bytes = Vec::new();
        for row in values.chunks(cols) {
            bytes.extend(row.iter().flat_map(|&v| encode(v, element)));
            bytes.resize(bytes.len() + (ld - cols) * element.size(), 0x7b);
        }
        let memory = self.device.allocate(bytes.len()).unwrap();
        self.device.write(&memory, 0, &bytes).unwrap();
        Operand::new(&memory, 0, element, ld)
    }

    /// Dense fp16 rows.
    pub fn halves(&self, values: &[f32], cols: usize) -> Operand {
        self.put(values, cols, cols, ElementType::F16)
    }

    /// A row of a table of f32 rows: the one of the evaluation and slot that run, between others.
    pub fn table(&self, row: &[f32]) -> Operand {
        let bytes = row.len() * 4;
        let memory = self.device.allocate(bytes * STEPS * SLOTS).unwrap();
        let junk = vec![0x7b; bytes * STEPS * SLOTS];
        self.device.write(&memory, 0, &junk).unwrap();
        let own: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.device.write(&memory, (SLOT * STEPS + STEP) * bytes, &own).unwrap();
        let all = Operand::new(&memory, 0, ElementType::F32, row.len());
        Operand { per_step: bytes, per_slot: bytes * STEPS, ..all }
    }

    /// Room for a result, poisoned.
    pub fn room(&self, rows: usize, ld: usize, element: ElementType) -> Operand {
        let bytes = vec![0x7b; rows * ld * element.size()];
        let memory = self.device.allocate(bytes.len()).unwrap();
        self.device.write(&memory, 0, &bytes).unwrap();
        Operand::new(&memory, 0, element, ld)
    }

    pub fn run(&self, launches: &[Launch]) {
        self.device.run(launches).unwrap();
    }

    /// The rows of an operand as numbers; what lies between rows must be as it was.
    pub fn get(&self, operand: &Operand, rows: usize, cols: usize) -> Vec<f32> {
        let (size, mut bytes) = (operand.element.size(), vec![0; operand.memory.len()]);
        self.device.read(&operand.memory, 0, &mut bytes).unwrap();
        let mut values = Vec::with_capacity(rows * cols);
        for row in bytes[operand.offset..].chunks(operand.ld * size).take(rows) {
            values.extend(
                row[..cols * size].chunks(size).map(|element| decode(element, operand.element)),
            );
            assert!(
                row[cols * size..].iter().all(|&b| b == 0x7b),
                "bytes after a row were written"
            );
        }
        values
    }
}

fn encode(v: f32, element: ElementType) -> Vec<u8> {
    match element {
        ElementType::F16 => f16::from_f32(v).to_le_bytes().to_vec(),
        ElementType::F32 => v.to_le_bytes().to_vec(),
        ElementType::U8 => vec![v as u8],
        ElementType::I32 => (v as i32).to_le_bytes().to_vec(),
        ElementType::I64 => (v as i64).to_le_bytes().to_vec(),
    }
}

fn decode(bytes: &[u8], element: ElementType) -> f32 {
    match element {
        ElementType::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        ElementType::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
        ElementType::U8 => bytes[0].into(),
        ElementType::I32 => i32::from_le_bytes(bytes.try_into().unwrap()) as f32,
        ElementType::I64 => i64::from_le_bytes(bytes.try_into().unwrap()) as f32,
    }
}

/// Noise in −1..1 that fp16 holds exactly.
pub fn halves(rng: &mut Rng, len: usize) -> Vec<f32> {
    rng.noise(len).into_iter().map(|v| f16::from_f32(v).to_f32()).collect()
}

pub fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Tensor::new(DType::F32, shape.to_vec(), bytes).unwrap()
}

/// What the definition says.
pub fn expected(op: &Op, inputs: &[Option<&Tensor>]) -> Vec<f32> {
    reference::eval(op, inputs).unwrap()[0].to_f32_vec()
}

/// Every code is the one that `wanted / scale` rounds to, or its neighbour where that is near the
/// middle between two.
#[track_caller]
pub fn assert_codes(got: &[f32], wanted: &[f32], scale: f32, zero: f32, near: f32, what: &str) {
    for (i, (&got, &wanted)) in got.iter().zip(wanted).enumerate() {
        let level = (wanted / scale + zero).clamp(0.0, 255.0);
        assert!((got - level).abs() <= 0.5 + near, "{what}: [{i}] is {got}, not {level}");
    }
}

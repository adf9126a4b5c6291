//! The one list of kernels.

/// A kernel of the CUDA sources as it is launched: a function that takes one struct.
#[derive(Debug, PartialEq, Eq)]
pub struct EntryPoint {
    /// Name of the function, unique among all sources.
    pub name: &'static str,
    /// The source that holds it, one of [`SOURCES`](super::SOURCES).
    pub source: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// Whether it is made of tensor-core products.
    pub tensor_cores: bool,
}

impl EntryPoint {
    /// Whether what it computes with may leave a [`Fault`](super::Fault).
    pub fn may_fail(&self) -> bool {
        ["integers", "gather"].contains(&self.name)
    }
}

macro_rules! kernels {
    ($($source:literal: $($name:ident $threads:literal $(($tensor:ident))?),+;)*) => {
        $($(
            #[allow(non_upper_case_globals)] // named as in the source
            pub(super) static $name: EntryPoint = EntryPoint {
                name: stringify!($name),
                source: $source,
                threads: $threads,
                tensor_cores: false $(|| stringify!($tensor).len() > 0)?,
            };
        )+)*
        /// Every kernel of the sources.
        pub static KERNELS: &[&EntryPoint] = &[$($(&$name),+),*];

        /// Every kernel's entry in the simulator.
        #[cfg(feature = "cuda-sim")]
        pub(super) mod entries {
            use std::ffi::c_void;
            /// The arguments and `[blocks along x, blocks along y, bytes of shared memory]`.
            pub(in crate::cuda) type Entry = unsafe extern "C" fn(*const c_void, *const u32);
            mod link {
                use std::ffi::c_void;
                unsafe extern "C" {
                    $($(
                        #[link_name = concat!("cqc_sim_", stringify!($name))]
                        pub(super) fn $name(args: *const c_void, grid: *const u32);
                    )+)*
                }
            }
            pub(in crate::cuda) const ENTRIES: &[(&str, Entry)] = &[$($((stringify!($name), link::$name)),+),*];
        }
    };
}

kernels! {
    "conv":
        conv_codes_128 256 (mma), conv_codes_64 128 (mma), conv_segments_128 256 (mma), conv_segments_64 128 (mma),
        conv_f16_128 256 (mma), conv_f16_64 128 (mma), conv_sum 256, conv_direct 256, matmul 256;
    "norm": group_norm_moments 256, group_norm_apply 256, layer_norm 128, softmax 128;
    "attention":
        attention_32 128 (mma), attention_64 128 (mma), attention_96 128 (mma), attention_160 128 (mma),
        attention_rounded_32 128 (mma), attention_rounded_64 128 (mma), attention_rounded_96 128 (mma),
        attention_rounded_160 128 (mma), attention_direct 128;
    "elementwise":
        elementwise 256, integers 256, gather 256, affine 256, quantize 256, gated 256, timestep_embedding 256;
    "sampler": sampler_step 256, count_step 32;
    "selftest": selftest 32 (mma);
    "peak": mma_peak_s8 256 (mma), mma_peak_f16 256 (mma);
}

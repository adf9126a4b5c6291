//! Compiles the CUDA kernels as C++ for the simulator, if the feature `cuda-sim` asks for it.

fn main() {
    println!("cargo:rerun-if-changed=cuda");
    #[cfg(feature = "cuda-sim")]
    for source in ["conv", "norm", "attention", "elementwise", "sampler", "selftest"] {
        // without contraction: what is exact stays exact
        cc::Build::new()
            .cpp(true)
            .std("c++20")
            .flag("-xc++")
            .flag("-ffp-contract=off")
            .flag("-Wno-unknown-pragmas")
            .opt_level(2)
            .debug(false)
            .include("cuda")
            .file(format!("cuda/{source}.cu"))
            .compile(&format!("cqc_sim_{source}"));
    }
}

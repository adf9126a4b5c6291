//! Compiles the CUDA kernels as C++ for the simulator, if the feature `cuda-sim` asks for it: with
//! `CQC_SIM_SANITIZE=1` under the address and undefined-behaviour sanitizers, with whose libraries
//! whatever holds the simulator is then linked (GCC's; they have to come first).

fn main() {
    println!("cargo:rerun-if-changed=cuda");
    println!("cargo:rerun-if-env-changed=CQC_SIM_SANITIZE");
    #[cfg(feature = "cuda-sim")]
    simulator();
}

#[cfg(feature = "cuda-sim")]
fn simulator() {
    const SANITIZE: &str = "-fsanitize=address,undefined";
    let sanitize =
        std::env::var_os("CQC_SIM_SANITIZE").is_some_and(|set| !set.is_empty() && set != "0");
    if sanitize {
        println!("cargo:rustc-link-lib=dylib=asan");
        println!("cargo:rustc-link-lib=dylib=ubsan");
    }
    for source in ["conv", "norm", "attention", "elementwise", "sampler", "selftest", "peak"] {
        let mut build = cc::Build::new();
        if sanitize {
            build
                .flag(SANITIZE)
                .flag("-fno-sanitize-recover=all")
                .flag("-fno-omit-frame-pointer")
                .flag("-g1");
        }
        // without contraction: what is exact stays exact
        build
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

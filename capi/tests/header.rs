//! The header that is checked in is the one that the source makes.

use std::path::Path;

#[test]
fn the_header_is_current() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(dir.join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(dir.join("src/status.rs"))
        .with_src(dir.join("src/arrays.rs"))
        .with_src(dir.join("src/calls.rs"));
    let mut made = Vec::new();
    bindings.generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = dir.join("include/cqc.h");
    if std::env::var_os("CQC_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == made,
        "include/cqc.h is out of date: CQC_BLESS=1 cargo test -p cachequant-capi"
    );
}

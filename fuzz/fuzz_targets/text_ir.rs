#![no_main]

cqc_fuzz::target!(text_ir);

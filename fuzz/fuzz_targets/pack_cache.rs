#![no_main]

cqc_fuzz::target!(pack_cache);

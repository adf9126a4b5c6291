#![no_main]

cqc_fuzz::target!(cq);

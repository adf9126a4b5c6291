//! Caching over the denoising loop (DeepCache, CacheQuant): when to compute what is reused, and how to correct it.

pub mod band;
pub mod correction;
pub mod schedule;

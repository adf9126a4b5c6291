//! Noise levels and time steps: which levels a trajectory visits, whatever solver moves it.

pub(super) mod dpm;
pub(super) mod edm;
pub(super) mod flow;
pub(super) mod k_diffusion;
pub(super) mod schedule;
pub(super) mod sigmas;

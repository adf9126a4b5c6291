//! Noise levels and time steps that a trajectory visits, independent of the solver.

pub(super) mod dpm;
pub(super) mod edm;
pub(super) mod flow;
pub(super) mod k_diffusion;
pub(super) mod schedule;
pub(super) mod sigmas;

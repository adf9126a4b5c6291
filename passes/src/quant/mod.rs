//! Weights in few bits.

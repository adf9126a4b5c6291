"""Flow matching."""
from diffusers import FlowMatchEulerDiscreteScheduler as Euler

CASES = {
    "flow-euler": (Euler, {}, {}),
    "flow-euler-shift": (Euler, dict(shift=3.0), {}),
    "flow-euler-stochastic": (Euler, dict(shift=3.0, stochastic_sampling=True), {}),
    "flow-euler-dynamic": (Euler, dict(use_dynamic_shifting=True), dict(mu=0.8)),
    "flow-euler-dynamic-linear": (Euler, dict(use_dynamic_shifting=True, time_shift_type="linear"), dict(mu=1.3)),
    "flow-euler-terminal": (Euler, dict(shift_terminal=0.1, use_dynamic_shifting=True), dict(mu=1.5, steps=(2, 3, 7, 20, 50))),
    "flow-euler-karras": (Euler, dict(use_karras_sigmas=True), dict(steps=(2, 3, 7, 20, 50))),
    "flow-euler-exponential": (Euler, dict(use_exponential_sigmas=True), dict(steps=(2, 3, 7, 20, 50))),
    "flow-euler-inverted": (Euler, dict(invert_sigmas=True), {}),
    "flow-euler-sigmas": (Euler, dict(shift=2.0), dict(sigmas=[1.0, 0.9, 0.5, 0.2])),
    "flow-euler-timesteps": (Euler, {}, dict(timesteps=[1000.0, 750.5, 400.0])),
}

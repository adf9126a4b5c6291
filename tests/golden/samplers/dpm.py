"""DPM-Solver and DPM-Solver++: multistep, singlestep, inverse.

Left out because of diffusers' own rounding (see multistep.py): sde-dpmsolver++ of order 3 with beta sigmas in 50 steps, of
which a single step is 7e-5 away from float64. Where levels end at the one that `sigma_min` repeats (Karras and the like),
order 3 of dpmsolver is not a number in diffusers; runtime/src/sampler/tests.rs has that.
"""
from diffusers import DPMSolverMultistepInverseScheduler as Inverse
from diffusers import DPMSolverMultistepScheduler as Multi
from diffusers import DPMSolverSinglestepScheduler as Single

FEW = dict(steps=(3, 20))
MIN = dict(final_sigmas_type="sigma_min")
STABLE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
COSINE = dict(beta_schedule="squaredcos_cap_v2")
FLOW = dict(use_flow_sigmas=True, prediction_type="flow_prediction")
DYNAMIC = dict(use_dynamic_shifting=True, time_shift_type="exponential")
TRAINED = [0.001 + 0.0002 * i for i in range(100)]

SCHEDULES = {
    "karras": dict(use_karras_sigmas=True),
    "exponential": dict(use_exponential_sigmas=True),
    "beta": dict(use_beta_sigmas=True),
}


def solver(cls, name, algorithms, more):
    """Orders, algorithms and rules of one of the two classes."""
    cases = {}
    for algorithm in algorithms:
        end = {} if algorithm.endswith("++") else MIN
        for order in (1, 2, 3):
            if algorithm == "sde-dpmsolver" and order == 3:
                continue  # diffusers has no third order of it
            for rule in ("midpoint", "heun"):
                arguments = dict(algorithm_type=algorithm, solver_order=order, solver_type=rule, **end)
                kept = {} if (order, rule) in ((2, "midpoint"), (3, "heun")) else FEW
                cases[f"{name}-{algorithm}-{order}-{rule}"] = (cls, arguments, kept)
            cases[f"{name}-{algorithm}-{order}-v"] = (cls, dict(arguments, prediction_type="v_prediction"), FEW)
            cases[f"{name}-{algorithm}-{order}-sample"] = (cls, dict(arguments, prediction_type="sample"), FEW)
    for order in (1, 2, 3):
        for lower in (False, True):
            arguments = dict(MIN, solver_order=order, lower_order_final=lower)
            cases[f"{name}-lower-{order}-{lower}"] = (cls, arguments, dict(steps=(2, 3, 4, 5, 14, 15)))
    for schedule, arguments in SCHEDULES.items():
        cases[f"{name}-{schedule}"] = (cls, arguments, dict(steps=(1, 2, 3, 20, 50)))
        cases[f"{name}-{schedule}-stable"] = (cls, dict(arguments, **STABLE, **MIN), FEW)
        cases[f"{name}-{schedule}-cosine"] = (cls, dict(arguments, **COSINE, **MIN), FEW)
    return cases | more


CASES = solver(Multi, "dpm-multistep", ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"), {
    "dpm-multistep-euler-at-final": (Multi, dict(MIN, euler_at_final=True, lower_order_final=False), FEW),
    "dpm-multistep-euler-at-final-3": (Multi, dict(MIN, euler_at_final=True, solver_order=3), FEW),
    "dpm-multistep-lu": (Multi, dict(use_lu_lambdas=True), {}),
    "dpm-multistep-lu-stable": (Multi, dict(use_lu_lambdas=True, **STABLE, **MIN), FEW),
    "dpm-multistep-lu-cosine": (Multi, dict(use_lu_lambdas=True, **COSINE), FEW),
    "dpm-multistep-clipped": (Multi, dict(COSINE, lambda_min_clipped=-5.1), FEW),
    "dpm-multistep-clipped-leading": (Multi, dict(COSINE, lambda_min_clipped=-5.1, timestep_spacing="leading"), FEW),
    "dpm-multistep-clipped-trailing": (Multi, dict(COSINE, lambda_min_clipped=-5.1, timestep_spacing="trailing"), FEW),
    "dpm-multistep-leading": (Multi, dict(STABLE, timestep_spacing="leading", steps_offset=1), {}),
    "dpm-multistep-trailing": (Multi, dict(STABLE, timestep_spacing="trailing"), {}),
    "dpm-multistep-zero-snr": (Multi, dict(STABLE, rescale_betas_zero_snr=True, prediction_type="v_prediction"), {}),
    "dpm-multistep-zero-snr-trailing": (
        Multi,
        dict(STABLE, rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"),
        FEW,
    ),
    "dpm-multistep-threshold": (Multi, dict(thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=0.9), FEW),
    "dpm-multistep-threshold-noise": (
        Multi,
        dict(MIN, thresholding=True, sample_max_value=1.5, algorithm_type="dpmsolver"),
        FEW,
    ),
    "dpm-multistep-threshold-sde": (Multi, dict(thresholding=True, algorithm_type="sde-dpmsolver++"), FEW),
    "dpm-multistep-variance": (Multi, dict(variance_type="learned_range"), dict(steps=(3,))),
    "dpm-multistep-deis-file": (Multi, dict(MIN, algorithm_type="deis", solver_type="logrho"), dict(steps=(3,))),
    "dpm-multistep-trained": (Multi, dict(trained_betas=TRAINED, num_train_timesteps=100), FEW),
    "dpm-multistep-timesteps": (Multi, {}, dict(timesteps=[999, 801, 640, 333, 20, 3])),
    "dpm-multistep-timesteps-3": (Multi, dict(MIN, solver_order=3), dict(timesteps=[980, 801, 640, 333, 20, 3])),
    "dpm-multistep-flow": (Multi, FLOW, {}),
    "dpm-multistep-flow-shift": (Multi, dict(FLOW, flow_shift=3.0), {}),
    "dpm-multistep-flow-3": (Multi, dict(FLOW, flow_shift=3.0, solver_order=3), {}),
    "dpm-multistep-flow-min": (Multi, dict(FLOW, flow_shift=5.0, **MIN), FEW),
    "dpm-multistep-flow-sde": (Multi, dict(FLOW, flow_shift=3.0, algorithm_type="sde-dpmsolver++"), FEW),
    "dpm-multistep-flow-dynamic": (Multi, dict(FLOW, **DYNAMIC), dict(mu=0.9)),
    "dpm-multistep-flow-epsilon": (Multi, dict(use_flow_sigmas=True), FEW),
    "dpm-multistep-flow-sample": (Multi, dict(use_flow_sigmas=True, prediction_type="sample"), FEW),
    "dpm-multistep-flow-noise": (Multi, dict(MIN, use_flow_sigmas=True, algorithm_type="dpmsolver"), FEW),
})

CASES |= solver(Single, "dpm-singlestep", ("dpmsolver++", "dpmsolver", "sde-dpmsolver++"), {
    "dpm-singlestep-stable": (Single, STABLE, {}),
    "dpm-singlestep-clipped": (Single, dict(COSINE, lambda_min_clipped=-5.1), FEW),
    "dpm-singlestep-threshold": (Single, dict(thresholding=True, sample_max_value=1.5), FEW),
    "dpm-singlestep-variance": (Single, dict(variance_type="learned"), dict(steps=(3,))),
    "dpm-singlestep-deis-file": (Single, dict(MIN, algorithm_type="deis", solver_type="bh2"), dict(steps=(3,))),
    "dpm-singlestep-timesteps": (Single, {}, dict(timesteps=[999, 801, 640, 333, 20, 3])),
    "dpm-singlestep-flow": (Single, dict(FLOW, flow_shift=3.0), {}),
    "dpm-singlestep-flow-3": (Single, dict(FLOW, flow_shift=3.0, solver_order=3), FEW),
    "dpm-singlestep-flow-dynamic": (Single, dict(FLOW, **DYNAMIC), dict(FEW, mu=0.9)),
})

for algorithm in ("dpmsolver++", "dpmsolver"):
    for order in (1, 2, 3):
        for rule in ("midpoint", "heun"):
            arguments = dict(algorithm_type=algorithm, solver_order=order, solver_type=rule)
            CASES[f"dpm-multistep-inverse-{algorithm}-{order}-{rule}"] = (Inverse, arguments, dict(steps=(1, 3, 20)))
CASES |= {
    "dpm-multistep-inverse-leading": (Inverse, dict(STABLE, timestep_spacing="leading", steps_offset=1), FEW),
    "dpm-multistep-inverse-trailing": (Inverse, dict(STABLE, timestep_spacing="trailing"), FEW),
    "dpm-multistep-inverse-clipped": (Inverse, dict(COSINE, lambda_min_clipped=-5.1), FEW),
    "dpm-multistep-inverse-lower": (Inverse, dict(lower_order_final=False), FEW),
    "dpm-multistep-inverse-euler": (Inverse, dict(euler_at_final=True, solver_order=3), FEW),
    "dpm-multistep-inverse-v": (Inverse, dict(prediction_type="v_prediction"), FEW),
    "dpm-multistep-inverse-sample": (Inverse, dict(prediction_type="sample"), FEW),
    "dpm-multistep-inverse-threshold": (Inverse, dict(thresholding=True, sample_max_value=1.5), FEW),
} | {f"dpm-multistep-inverse-{name}": (Inverse, arguments, FEW) for name, arguments in SCHEDULES.items()}

"""UniPC, DEIS, PNDM with its Runge-Kutta start, SA-Solver, and DDIM inverted.

Left out because of diffusers' own rounding: its scalars are float32, and rules of order 3 and 4 divide small differences
of them. A single step then is off by this much from the same step with `scheduler.sigmas` and the sample in float64:

    SASolverScheduler, orders 3 and 3, Karras, 50 steps                            7e-5
    the same, orders 3 and 4                                                       2e-3
    UniPCMultistepScheduler, order 3, predict_x0=False, sample, cosine, 50 steps   6e-3
"""
import numpy as np
from diffusers import DDIMInverseScheduler as Inverse
from diffusers import DEISMultistepScheduler as Deis
from diffusers import PNDMScheduler as Pndm
from diffusers import SASolverScheduler as Sa
from diffusers import UniPCMultistepScheduler as UniPC

FEW = dict(steps=(3, 20))
MIN = dict(final_sigmas_type="sigma_min")
STABLE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
COSINE = dict(beta_schedule="squaredcos_cap_v2")
FLOW = dict(use_flow_sigmas=True, prediction_type="flow_prediction")
DYNAMIC = dict(use_dynamic_shifting=True, time_shift_type="exponential")
TRAINED = [0.001 + 0.0002 * i for i in range(100)]
LOWER = dict(steps=(2, 3, 4, 5, 14, 15))

SCHEDULES = {
    "karras": dict(use_karras_sigmas=True),
    "exponential": dict(use_exponential_sigmas=True),
    "beta": dict(use_beta_sigmas=True),
}
CASES = {}


def schedules(cls, name, end={}, cosine={}):
    for schedule, arguments in SCHEDULES.items():
        CASES[f"{name}-{schedule}"] = (cls, arguments, {})
        CASES[f"{name}-{schedule}-stable"] = (cls, dict(arguments, **STABLE, **end), FEW)
        CASES[f"{name}-{schedule}-cosine"] = (cls, dict(arguments, **COSINE, **end, **cosine), FEW)
    for spacing in ("leading", "trailing"):
        CASES[f"{name}-{spacing}"] = (cls, dict(STABLE, timestep_spacing=spacing, steps_offset=1), FEW)
    CASES[f"{name}-trained"] = (cls, dict(trained_betas=TRAINED, num_train_timesteps=100), FEW)


for rule in ("bh1", "bh2"):
    for x0 in (True, False):
        for order in (1, 2, 3):
            # bh1 divides by an infinite width in the last step to 0
            end = {} if x0 and rule == "bh2" else MIN
            arguments = dict(solver_type=rule, predict_x0=x0, solver_order=order, **end)
            name = f"unipc-{rule}-{'image' if x0 else 'noise'}-{order}"
            CASES[name] = (UniPC, arguments, {} if order > 1 else FEW)
            CASES[f"{name}-v"] = (UniPC, dict(arguments, prediction_type="v_prediction"), FEW)
            CASES[f"{name}-sample"] = (UniPC, dict(arguments, prediction_type="sample"), FEW)
schedules(UniPC, "unipc", MIN)
for order in (1, 2, 3):
    CASES[f"unipc-lower-{order}"] = (UniPC, dict(MIN, solver_order=order, lower_order_final=False), LOWER)
CASES |= {
    "unipc-4": (UniPC, dict(solver_order=4), FEW),
    "unipc-uncorrected": (UniPC, dict(disable_corrector=[0, 1, 4, 17]), FEW),
    "unipc-zero-snr": (UniPC, dict(STABLE, rescale_betas_zero_snr=True, prediction_type="v_prediction"), FEW),
    "unipc-threshold": (UniPC, dict(thresholding=True, sample_max_value=1.5), FEW),
    "unipc-midpoint-file": (UniPC, dict(solver_type="midpoint"), dict(steps=(3,))),
    "unipc-ends": (UniPC, dict(use_karras_sigmas=True, sigma_min=0.05, sigma_max=40.0), FEW),
    "unipc-flow": (UniPC, dict(FLOW, flow_shift=3.0), {}),
    "unipc-flow-min": (UniPC, dict(FLOW, flow_shift=3.0, **MIN), FEW),
    "unipc-flow-3": (UniPC, dict(FLOW, flow_shift=5.0, solver_order=3), {}),
    "unipc-flow-dynamic": (UniPC, dict(FLOW, **DYNAMIC), dict(mu=0.9)),
    "unipc-flow-linear": (UniPC, dict(FLOW, use_dynamic_shifting=True, time_shift_type="linear"), dict(FEW, mu=1.4)),
    "unipc-flow-terminal": (UniPC, dict(FLOW, shift_terminal=0.1, **DYNAMIC), dict(steps=(2, 3, 20), mu=0.9)),
    "unipc-flow-karras": (UniPC, dict(FLOW, use_karras_sigmas=True, sigma_min=0.147, sigma_max=200.0), {}),
    "unipc-flow-karras-min": (UniPC, dict(FLOW, use_karras_sigmas=True, sigma_min=0.147, sigma_max=200.0, **MIN), FEW),
    "unipc-flow-epsilon": (UniPC, dict(use_flow_sigmas=True), FEW),
    "unipc-flow-sigmas": (
        UniPC,
        dict(FLOW, flow_shift=2.0),
        dict(sigmas=[1.0, 0.9, 0.5, 0.2], set=dict(sigmas=np.array([1.0, 0.9, 0.5, 0.2]))),
    ),
}

for order in (1, 2, 3):
    CASES[f"deis-{order}"] = (Deis, dict(solver_order=order), {})
    CASES[f"deis-{order}-v"] = (Deis, dict(solver_order=order, prediction_type="v_prediction"), FEW)
    CASES[f"deis-{order}-sample"] = (Deis, dict(solver_order=order, prediction_type="sample"), FEW)
    CASES[f"deis-lower-{order}"] = (Deis, dict(solver_order=order, lower_order_final=False), LOWER)
schedules(Deis, "deis")
CASES |= {
    # 1e-2 away from float64, and all the same the bits of numpy's float32 logarithms
    "deis-3-beta": (Deis, dict(solver_order=3, use_beta_sigmas=True), dict(steps=(50,))),
    "deis-threshold": (Deis, dict(thresholding=True, sample_max_value=1.5), FEW),
    "deis-dpm-file": (Deis, dict(algorithm_type="dpmsolver++", solver_type="midpoint"), dict(steps=(3,))),
    "deis-flow": (Deis, dict(FLOW, flow_shift=3.0), {}),
    "deis-flow-3": (Deis, dict(FLOW, flow_shift=3.0, solver_order=3), FEW),
    "deis-flow-dynamic": (Deis, dict(FLOW, **DYNAMIC), dict(FEW, mu=0.9)),
}

# fewer than four steps fail in diffusers
PRK = dict(steps=(4, 5, 7, 20, 50))
CASES |= {
    "pndm": (Pndm, {}, PRK),
    "pndm-stable": (Pndm, dict(STABLE, steps_offset=1), PRK),
    "pndm-cosine": (Pndm, COSINE, dict(steps=(7,))),
    "pndm-one": (Pndm, dict(set_alpha_to_one=True), dict(steps=(4, 20))),
    "pndm-v": (Pndm, dict(prediction_type="v_prediction"), dict(steps=(4, 20))),
    "pndm-linspace": (Pndm, dict(timestep_spacing="linspace"), dict(steps=(7, 20))),
    "pndm-trailing": (Pndm, dict(timestep_spacing="trailing"), dict(steps=(7, 20))),
    "pndm-trained": (Pndm, dict(trained_betas=TRAINED, num_train_timesteps=100), dict(steps=(7, 20))),
    "pndm-skipped": (Pndm, dict(skip_prk_steps=True), {}),
    "pndm-named": (Pndm, {}, dict(kind="pndm", steps=(7,))),
}

for algorithm in ("data_prediction", "noise_prediction"):
    for predictor, corrector in ((1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (1, 4), (4, 4)):
        arguments = dict(algorithm_type=algorithm, predictor_order=predictor, corrector_order=corrector)
        CASES[f"sa-{algorithm}-{predictor}-{corrector}"] = (Sa, arguments, {} if predictor == 2 == corrector else FEW)
    CASES[f"sa-{algorithm}-v"] = (Sa, dict(algorithm_type=algorithm, prediction_type="v_prediction"), FEW)
    CASES[f"sa-{algorithm}-sample"] = (Sa, dict(algorithm_type=algorithm, prediction_type="sample"), FEW)
# at cosine's highest levels an image made of noise magnifies the last bit of the sample 20000 times: of velocity, not
schedules(Sa, "sa", cosine=dict(prediction_type="v_prediction"))
CASES |= {
    "sa-lower": (Sa, dict(lower_order_final=False), LOWER),
    "sa-lower-3": (Sa, dict(lower_order_final=False, predictor_order=3, corrector_order=3), dict(steps=(4,))),
    "sa-clipped": (Sa, dict(COSINE, lambda_min_clipped=-5.1), FEW),
    "sa-threshold": (Sa, dict(thresholding=True, sample_max_value=1.5), FEW),
    "sa-flow": (Sa, dict(FLOW, flow_shift=3.0), FEW),
    "sa-variance": (Sa, dict(variance_type="learned"), dict(steps=(3,))),
}

CASES |= {
    "ddim-inverse": (Inverse, dict(clip_sample=False), {}),
    "ddim-inverse-clip": (Inverse, dict(clip_sample_range=0.8), FEW),
    "ddim-inverse-first": (Inverse, dict(STABLE, clip_sample=False, set_alpha_to_one=False, steps_offset=1), FEW),
    "ddim-inverse-v": (Inverse, dict(clip_sample=False, prediction_type="v_prediction"), FEW),
    "ddim-inverse-sample": (Inverse, dict(prediction_type="sample", set_alpha_to_one=False), FEW),
    "ddim-inverse-trailing": (Inverse, dict(clip_sample=False, timestep_spacing="trailing"), FEW),
    # at the last step of pure noise nothing but the velocity is finite
    "ddim-inverse-zero-snr": (
        Inverse,
        dict(clip_sample=False, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
        FEW,
    ),
    "ddim-inverse-trained": (Inverse, dict(clip_sample=False, trained_betas=TRAINED, num_train_timesteps=100), FEW),
}

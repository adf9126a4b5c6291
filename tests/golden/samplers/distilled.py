"""Distilled models: LCM, TCD."""
from diffusers import LCMScheduler as Lcm
from diffusers import TCDScheduler as Tcd

FEW = (3, 20)
LIST = [999, 759, 500, 259]

CASES = {
    "lcm": (Lcm, {}, {}),
    "lcm-original": (Lcm, dict(original_inference_steps=100, timestep_scaling=2.0), dict(steps=(4, 60, 100))),
    "lcm-sparse": (Lcm, dict(original_inference_steps=4), dict(steps=(1, 3, 4))),
    "lcm-timesteps": (Lcm, {}, dict(timesteps=LIST)),
    "lcm-clip": (Lcm, dict(clip_sample=True, clip_sample_range=0.8), dict(steps=FEW)),
    "lcm-threshold": (Lcm, dict(thresholding=True, dynamic_thresholding_ratio=0.7, sample_max_value=1.6), dict(steps=FEW)),
    "lcm-v": (Lcm, dict(prediction_type="v_prediction", rescale_betas_zero_snr=True), dict(steps=FEW)),
    "lcm-sample": (Lcm, dict(prediction_type="sample", beta_schedule="linear"), dict(steps=FEW)),
    "lcm-cosine": (Lcm, dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=500), dict(steps=FEW)),
    "lcm-trained": (Lcm, dict(trained_betas=[0.001 + 0.0004 * i for i in range(100)], num_train_timesteps=100), dict(steps=FEW)),
    # no option of these three changes anything in diffusers
    "lcm-silent": (Lcm, dict(steps_offset=1, set_alpha_to_one=False, timestep_spacing="trailing"), dict(steps=FEW)),
    "tcd": (Tcd, {}, dict(eta=0.3)),
    "tcd-eta-0": (Tcd, {}, dict(eta=0.0, step=dict(eta=0.0), steps=FEW)),
    "tcd-eta-1": (Tcd, {}, dict(eta=1.0, step=dict(eta=1.0), steps=FEW)),
    "tcd-eta-0.77": (Tcd, dict(original_inference_steps=100), dict(eta=0.77, step=dict(eta=0.77), steps=(4, 100))),
    "tcd-timesteps": (Tcd, {}, dict(eta=0.3, timesteps=LIST)),
    "tcd-v": (Tcd, dict(prediction_type="v_prediction", rescale_betas_zero_snr=True), dict(eta=0.3, steps=FEW)),
    "tcd-sample": (Tcd, dict(prediction_type="sample", beta_schedule="linear"), dict(eta=0.3, steps=FEW)),
    "tcd-cosine": (Tcd, dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=500), dict(eta=0.3, steps=FEW)),
    # clipping and thresholding do not change anything in diffusers
    "tcd-silent": (Tcd, dict(clip_sample=True, thresholding=True), dict(eta=0.3, steps=FEW)),
}

//! Words of ONNX that mutations put into models.

/// Names of attributes.
#[rustfmt::skip]
pub const ATTRIBUTES: &[&str] = &[
    "activation", "activation_alpha", "align_corners", "allowzero", "alpha", "alpha_value",
    "antialias", "approximate", "auto_pad", "axes", "axis", "batch_axis", "batch_dims", "beta",
    "bias", "bits", "blocksize", "block_size", "body", "border", "broadcast", "ceil_mode",
    "channels_last", "coordinate_transformation_mode", "count_include_pad", "cubic_coeff_a",
    "detect_negative", "detect_positive", "dilations", "direction", "do_rotary", "dtype",
    "else_branch", "end", "epsilon", "equation", "exclude_outside", "exclusive",
    "extrapolation_value", "fmod", "gamma", "group", "groups", "hidden_size", "high", "interleaved",
    "is_causal", "k", "K", "keepdims", "keep_aspect_ratio_policy", "kernel_shape", "keys_int64s",
    "kv_num_heads", "lambd", "largest", "local_window_size", "low", "max", "min", "mode",
    "momentum", "N", "nearest_mode", "new_axis", "noop_with_empty_axes", "norm_size_per_head",
    "num_groups", "num_heads", "num_outputs", "offset", "output_datatype", "output_dtype",
    "output_padding", "output_shape", "p", "pads", "perm", "q_num_heads", "qk_matmul_output_mode",
    "ratio", "reduction", "repeats", "reverse", "rotary_embedding_dim", "sample_size", "saturate",
    "scale", "scales", "seed", "select_last_index", "shape", "size", "softcap", "softmax_precision",
    "sorted", "sparse_value", "spatial_scale", "split", "start", "starts", "ends", "stash_type",
    "steps", "storage_order", "strides", "then_branch", "to", "training_mode", "transA", "transB",
    "transBatchA", "unidirectional", "upper", "value", "value_float", "value_floats", "value_int",
    "value_ints", "value_string", "values", "width_scale", "height_scale",
];

/// Texts of string attributes.
#[rustfmt::skip]
pub const TEXTS: &[&str] = &[
    "", "none", "tanh", "relu", "silu", "gelu", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID",
    "constant", "reflect", "edge", "wrap", "nearest", "linear", "cubic", "bilinear", "half_pixel",
    "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
    "half_pixel_symmetric", "round_prefer_floor", "floor", "ceil", "stretch", "not_larger",
    "not_smaller", "DCR", "CRD", "ij,jk->ik", "bhqd,bhkd->bhqk", "...ij->...ji", "ii->i", "i,i->",
    "add", "mul", "max", "min", "forward", "bidirectional",
];

/// Names of dimensions.
pub const SYMBOLS: &[&str] = &["N", "batch", "height", "a b", "N+1", "2*N", "", "unk__1"];

//! `--with` on the command line: a ControlNet beside a U-Net.

mod common;

use common::{done, line, tests};

#[test]
fn a_control_net_is_compiled_and_sampled_with_the_unet() {
    let dir = tempfile::tempdir().unwrap();
    let folder = tests().join("golden/controlnet");
    let at = |name: &str| folder.join(name).display().to_string();
    let models = format!("{} --with {}", at("unet.onnx"), at("control1.onnx"));
    // arrays have other names in the recording
    let golden = cachequant::io::read_npz(&folder.join("golden.npz")).unwrap();
    let put = |name: &str, file: &str| {
        let path = dir.path().join(file);
        let (_, tensor) = golden.iter().find(|(n, _)| n == name).unwrap();
        cachequant::io::write_npy(&path, tensor, cachequant::Overwrite::Refuse).unwrap();
        path.display().to_string()
    };
    let (text, image) = (put("text", "text.npy"), put("image1", "image.npy"));
    let cond = format!("--cond encoder_hidden_states={text} --cond controlnet_cond={image}");
    let (artifact, out) = (dir.path().join("c.cq"), dir.path().join("y.npy"));
    let (artifact, out) = (artifact.display(), out.display());
    let compile = format!("compile {models} -o {artifact} --steps 4 --interval 1 --quant none");
    done(&compile);
    done(&format!("sample {artifact} -n 2 {cond} --cond conditioning_scale=0.8 -o {out}"));

    let said = done(&format!("doctor {models}")).stdout;
    assert!(said.contains("control1: feeds `down_block_res_sample_0` as"), "{said}");
    let said = done(&format!("inspect {models} --json")).json();
    assert_eq!(said["with"][0]["wires"]["mid_block_res_sample"], "mid_block_additional_residual");

    let refused = line(&format!("sample {artifact} -n 2 {cond} -o {out} --force"));
    assert!(refused.stderr.contains("input `conditioning_scale` is missing"), "{}", refused.stderr);
    let refused = line(&format!("doctor {} --wire a=b", at("unet.onnx")));
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("--with"), "{}", refused.stderr);
    let refused = line(&format!("doctor {} --per-step nothing", at("unet.onnx")));
    assert!(refused.stderr.contains("--per-step nothing"), "{}", refused.stderr);
}

//! Recognises by its content a file that is not of the expected format, and says what to do about
//! it.
//!
//! Only files that could not be read in the expected format are looked at, so a mistake costs a
//! wrong sentence and never a model.

use crate::onnx::scan::varint;
use std::fmt;

/// A kind of file that people give to cqc instead of an ONNX model or an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names of the formats; `Display` spells them out
pub enum Format {
    /// The text that a clone without Git LFS has instead of a large file.
    GitLfsPointer,
    /// The text or link that git-annex has instead of a large file.
    GitAnnexPointer,
    /// A web page. Usually it is the message of a server that does not send the file.
    Html,
    Json,
    /// ONNX in its text form for people.
    OnnxText,
    Safetensors,
    /// A zip archive of `torch.save` or TorchScript.
    TorchZip,
    /// A pickle, as `torch.save` wrote it before PyTorch 1.6.
    Pickle,
    Gguf,
    /// The network of OpenVINO's pair of `.xml` and `.bin`.
    OpenVino,
    TensorRt,
    TfLite,
    /// ONNX Runtime's own format.
    Ort,
    /// HDF5, as Keras writes it.
    Hdf5,
    /// Keras' zip archive.
    KerasZip,
    CoreMl,
    /// The network of ncnn's pair of `.param` and `.bin`.
    Ncnn,
    /// An artifact of cqc.
    Artifact,
    NumpyArray,
    NumpyArchive,
    Zip,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
    SevenZip,
    Tar,
    Xml,
    Yaml,
    Image,
    /// A file of zeros: a download or copy that has reserved the space and written nothing.
    Zeros,
    Text,
}

/// Number of bytes of a text that are looked at.
const HEAD: usize = 4096;

impl Format {
    /// The format of a file with these bytes; `None` if it is not known.
    pub fn of(bytes: &[u8]) -> Option<Format> {
        use Format::*;
        let found = match bytes {
            // The header's length may look like the first bytes of any other format, so this comes
            // first.
            _ if is_safetensors(bytes) => Safetensors,
            [0x89, b'C', b'Q', b'C', ..] => Artifact,
            [b'G', b'G', b'U', b'F', ..] => Gguf,
            [b'f', b't', b'r', b't', ..] => TensorRt,
            [_, _, _, _, b'T', b'F', b'L', b'3', ..] => TfLite,
            [_, _, _, _, b'O', b'R', b'T', b'M', ..] => Ort,
            [0x89, b'H', b'D', b'F', b'\r', b'\n', 0x1a, b'\n', ..] => Hdf5,
            [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => NumpyArray,
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => zip(bytes),
            [0x1f, 0x8b, ..] => Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Bzip2,
            [b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c, ..] => SevenZip,
            [0x89, b'P', b'N', b'G', ..]
            | [0xff, 0xd8, 0xff, ..]
            | [b'G', b'I', b'F', b'8', ..] => Image,
            [0x80, 2..=5, ..] => Pickle,
            _ if bytes.get(257..262) == Some(b"ustar") => Tar,
            _ if bytes.len() > HEAD && bytes.iter().take(HEAD).all(|&b| b == 0) => Zeros,
            _ => return text(bytes).or_else(|| is_core_ml(bytes).then_some(CoreMl)),
        };
        Some(found)
    }

    /// The format of a placeholder or of a server's message, which may stand for a file of any
    /// format.
    pub fn of_placeholder(bytes: &[u8]) -> Option<Format> {
        text(bytes)
            .filter(|f| matches!(f, Format::GitLfsPointer | Format::GitAnnexPointer | Format::Html))
    }

    /// A sentence that says how to get an ONNX model.
    pub fn help(self) -> &'static str {
        use Format::*;
        match self {
            GitLfsPointer => "fetch the file with `git lfs pull` in that repository",
            GitAnnexPointer => "fetch the file with `git annex get` in that repository",
            Html => "download the file again: this is a page, perhaps an error or a login page",
            Json => "give the .onnx file; configurations stand beside it",
            OnnxText => {
                "convert it: onnx.save(onnx.load(FILE, format=\"textproto\"), \"model.onnx\")"
            }
            Safetensors | Pickle | TorchZip => {
                "weights alone are no network: export the pipeline with `optimum-cli export onnx`, or \
                 the loaded module with torch.onnx.export"
            }
            Gguf => {
                "export the original, not the GGUF file, with `optimum-cli export onnx` or \
                 torch.onnx.export"
            }
            OpenVino => {
                "OpenVINO does not write ONNX: export the original model with `optimum-cli export \
                 onnx` or torch.onnx.export"
            }
            TensorRt => "give the ONNX file that the engine was built from",
            TfLite => {
                "convert it with `python -m tf2onnx.convert --tflite FILE --output model.onnx`"
            }
            Ort => "give the .onnx file that it was converted from",
            Hdf5 | KerasZip => {
                "load it in Keras and write ONNX with model.export(\"model.onnx\", format=\"onnx\")"
            }
            CoreMl => {
                "export the original model with `optimum-cli export onnx` or torch.onnx.export"
            }
            Ncnn => "export the original model with torch.onnx.export",
            Artifact => "it is compiled already: `cqc sample`, `cqc inspect` and `cqc run` take it",
            NumpyArray | NumpyArchive => "arrays are given to inputs, as in --input NAME=FILE",
            Zip => "unpack it with `unzip FILE`, and give the .onnx file in it",
            Gzip => "unpack it with `gunzip FILE` (or `tar xzf FILE`), and give the .onnx file",
            Zstd => "unpack it with `unzstd FILE`, and give the .onnx file",
            Xz => "unpack it with `unxz FILE` (or `tar xJf FILE`), and give the .onnx file",
            Bzip2 => "unpack it with `bunzip2 FILE` (or `tar xjf FILE`), and give the .onnx file",
            SevenZip => "unpack it with `7z x FILE`, and give the .onnx file in it",
            Tar => "unpack it with `tar xf FILE`, and give the .onnx file in it",
            Zeros => "download or copy the file again: nothing of it has arrived",
            Xml | Yaml | Image | Text => {
                "give an .onnx file, as `optimum-cli export onnx` or torch.onnx.export writes"
            }
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Format::*;
        f.write_str(match self {
            GitLfsPointer => "it is a Git LFS pointer, not the file itself",
            GitAnnexPointer => "it is a git-annex pointer, not the file itself",
            Html => "it is an HTML page",
            Json => "it is a JSON file",
            OnnxText => "it is an ONNX model written as text",
            Safetensors => "it is a safetensors file: weights without a network",
            TorchZip => "it is a PyTorch file (a zip archive of torch.save or TorchScript)",
            Pickle => "it is a pickle, as PyTorch's .ckpt and .pt files are",
            Gguf => "it is a GGUF file",
            OpenVino => "it is a network in OpenVINO's IR (.xml)",
            TensorRt => "it is a TensorRT engine",
            TfLite => "it is a TensorFlow Lite model",
            Ort => "it is a model in ONNX Runtime's own format (.ort)",
            Hdf5 => "it is an HDF5 file, as Keras writes",
            KerasZip => "it is a Keras model (a zip archive)",
            CoreMl => "it is a Core ML model",
            Ncnn => "it is a network of ncnn (.param)",
            Artifact => "it is an artifact of cqc",
            NumpyArray => "it is a numpy array (.npy)",
            NumpyArchive => "it is a numpy archive (.npz)",
            Zip => "it is a zip archive",
            Gzip => "it is compressed with gzip",
            Zstd => "it is compressed with zstd",
            Xz => "it is compressed with xz",
            Bzip2 => "it is compressed with bzip2",
            SevenZip => "it is a 7z archive",
            Tar => "it is a tar archive",
            Xml => "it is an XML file",
            Yaml => "it is a YAML file",
            Image => "it is an image",
            Zeros => "it begins with nothing but zeros",
            Text => "it is a text file",
        })
    }
}

/// A file of the length of the header (8 bytes, little endian) and the header, which is a JSON
/// object.
fn is_safetensors(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    let length = u64::from_le_bytes(*length);
    (2..=100 << 20).contains(&length) && rest.first() == Some(&b'{')
}

/// The format of a zip archive, by the name of its first entry, which every local header has.
fn zip(bytes: &[u8]) -> Format {
    let length = bytes.get(26..28).map_or(0, |n| u16::from_le_bytes([n[0], n[1]]) as usize);
    let name = bytes.get(30..30 + length).unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    let torch = ["/data.pkl", "/.format_version", "/byteorder", "/version", "/constants.pkl"];
    if torch.iter().any(|end| name.ends_with(end)) {
        Format::TorchZip
    } else if name.ends_with(".npy") {
        Format::NumpyArchive
    } else if matches!(&*name, "metadata.json" | "config.json" | "model.weights.h5") {
        Format::KerasZip
    } else {
        Format::Zip
    }
}

fn text(bytes: &[u8]) -> Option<Format> {
    use Format::*;
    let head = &bytes[..bytes.len().min(HEAD)];
    let head = match std::str::from_utf8(head) {
        Ok(text) => text,
        // the last character may be cut in two
        Err(e) if e.valid_up_to() + 4 > head.len() && bytes.len() > HEAD => {
            std::str::from_utf8(&head[..e.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_control = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\x0c');
    if head.trim().is_empty() || head.contains(is_control) {
        return None;
    }
    let text = head.trim_start_matches('\u{feff}').trim_start();
    let lower = text.to_ascii_lowercase();
    let begins = |starts: &[&str]| starts.iter().any(|s| lower.starts_with(s));
    Some(
        if begins(&["version https://git-lfs.github.com/", "version https://hawser.github.com/"]) {
            GitLfsPointer
        } else if begins(&["/annex/objects/"]) || lower.contains(".git/annex/objects/") {
            GitAnnexPointer
        } else if begins(&["<!doctype html", "<html", "<head", "<body"]) {
            Html
        } else if begins(&["<?xml", "<net"]) && lower.contains("<net") {
            OpenVino
        } else if begins(&["<?xml"]) {
            if lower.contains("<html") { Html } else { Xml }
        } else if begins(&["ir_version", "<ir_version", "< ir_version"])
            || (begins(&["<"]) && lower.contains("ir_version:"))
        {
            OnnxText
        } else if begins(&["7767517"]) {
            Ncnn
        } else if begins(&["{", "["]) {
            Json
        } else if begins(&["---", "%yaml"]) {
            Yaml
        } else {
            Text
        },
    )
}

/// The messages of Core ML number the kinds of networks from 200 on, which those of ONNX do not.
fn is_core_ml(mut bytes: &[u8]) -> bool {
    // a few fields come before the network
    for _ in 0..64 {
        let Some(key) = varint(&mut bytes) else { return false };
        if key & 7 == 2 && (200..=3000).contains(&(key >> 3)) {
            return true;
        }
        let skip = match key & 7 {
            0 => varint(&mut bytes).map(|_| 0),
            1 => Some(8),
            2 => varint(&mut bytes).and_then(|n| usize::try_from(n).ok()),
            5 => Some(4),
            _ => None,
        };
        match skip.and_then(|n| bytes.get(n..)) {
            Some(rest) => bytes = rest,
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_first_bytes() {
        let zip_of = |name: &str| {
            let mut bytes = b"PK\x03\x04".to_vec();
            bytes.resize(26, 0);
            bytes.extend((name.len() as u16).to_le_bytes());
            bytes.extend([0, 0]);
            bytes.extend(name.bytes());
            bytes
        };
        let mut safetensors = 64u64.to_le_bytes().to_vec();
        safetensors.extend(b"{\"a\":{\"dtype\":\"F32\"}}");
        let mut tar = vec![b'x'; 257];
        tar.extend(b"ustar\0");
        // specification 4, a description, and a neural network (field 500)
        let core_ml = [0x08, 4, 0x12, 2, 0x0a, 0, 0xa2, 0x1f, 1, 0];
        let cases: &[(&[u8], Format)] = &[
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
                Format::GitLfsPointer,
            ),
            (b"/annex/objects/SHA256E-s12--0.onnx\n", Format::GitAnnexPointer),
            (b"\xef\xbb\xbf<!DOCTYPE html><html>", Format::Html),
            (b"<?xml version=\"1.0\"?>\n<net name=\"unet\" version=\"11\">", Format::OpenVino),
            (b"<?xml version=\"1.0\"?>\n<Error>AccessDenied</Error>", Format::Xml),
            (b"{\"sample_size\": 64}", Format::Json),
            (b"ir_version: 8\n", Format::OnnxText),
            (b"<\n  ir_version: 8,\n", Format::OnnxText),
            (b"7767517\n75 83\n", Format::Ncnn),
            (b"caf\xc3\xa9", Format::Text),
            (&safetensors, Format::Safetensors),
            (&zip_of("archive/data.pkl"), Format::TorchZip),
            (&zip_of("x.npy"), Format::NumpyArchive),
            (&zip_of("unet/model.onnx"), Format::Zip),
            (&zip_of("config.json"), Format::KerasZip),
            (b"PK\x05\x06", Format::Zip),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9", Format::Pickle),
            (b"GGUF\x03\0\0\0", Format::Gguf),
            (b"ftrt\0\0", Format::TensorRt),
            (b"\x1c\0\0\0TFL3", Format::TfLite),
            (b"\x1c\0\0\0ORTM", Format::Ort),
            (b"\x89HDF\r\n\x1a\n", Format::Hdf5),
            (b"\x1f\x8b\x08", Format::Gzip),
            (b"\x28\xb5\x2f\xfd", Format::Zstd),
            (&tar, Format::Tar),
            (&[0; 5000], Format::Zeros),
            (&core_ml, Format::CoreMl),
        ];
        for (bytes, format) in cases {
            assert_eq!(Format::of(bytes), Some(*format));
            assert!(!format.help().is_empty() && format.to_string().starts_with("it "));
        }
        for unknown in [&b""[..], b"\x08\x07\x12\x02", b"\x01\x02\xff", b"\xc3"] {
            assert_eq!(Format::of(unknown), None, "{unknown:?}");
        }
    }
}

//! Compiles `proto/` without a system protoc: protox parses, tonic-prost-build generates.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files: Vec<PathBuf> =
        fs::read_dir("proto/matriarch/v1")?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().btree_map(".").bytes(".").compile_fds(descriptors)?;
    Ok(())
}

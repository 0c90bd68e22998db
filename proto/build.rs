//! Compiles the .proto files without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["transaction", "participant", "admin"].map(|name| format!("proto/lockstep/v1/{name}.proto"));
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(&files, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    let encoded = prost_encode(&descriptors);
    std::fs::write(out.join("descriptors.bin"), encoded)?;
    let mut types = prost_build::Config::new();
    types.enable_type_names();
    tonic_prost_build::configure().bytes(".").codec_path("crate::weight::Codec").compile_fds_with_config(descriptors, types)?;
    Ok(())
}

fn prost_encode(descriptors: &impl prost::Message) -> Vec<u8> {
    descriptors.encode_to_vec()
}

//! The frame around everything this room writes to disk: one byte for the
//! version of the format, four for the CRC-32C, then a protobuf message.

use prost::Message;

const VERSION: u8 = 1;
const HEAD: usize = 5;

/// Bytes that are no record of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Shorter than a frame.
    #[error("{0} bytes are too short for a record")]
    Short(usize),
    /// Written by a newer version.
    #[error("record version {0} is unknown to this version")]
    Version(u8),
    /// The content changed since it was written.
    #[error("record checksum {stored:08x} does not match its content ({computed:08x})")]
    Checksum {
        /// What the frame says.
        stored: u32,
        /// What the content gives.
        computed: u32,
    },
    /// The content is no such message.
    #[error("record content is no such message: {0}")]
    Content(#[from] prost::DecodeError),
    /// The message contradicts its place or itself.
    #[error("record content makes no sense: {0}")]
    Nonsense(String),
}

impl From<RecordError> for std::io::Error {
    fn from(error: RecordError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// Frames a message.
pub(super) fn seal(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + message.encoded_len());
    bytes.push(VERSION);
    bytes.extend_from_slice(&[0; 4]);
    // A Vec grows as needed, so encoding into it can't run out of room.
    bytes.extend_from_slice(&message.encode_to_vec());
    let crc = checksum(&bytes);
    bytes[1..HEAD].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Checks the frame and decodes the message.
///
/// # Errors
/// Anything that is not exactly what [`seal`] wrote.
pub(super) fn open<M: Message + Default>(bytes: &[u8]) -> Result<M, RecordError> {
    let (Some(&version), Some(stored)) = (bytes.first(), bytes.get(1..HEAD)) else {
        return Err(RecordError::Short(bytes.len()));
    };
    if version != VERSION {
        return Err(RecordError::Version(version));
    }
    let stored = stored.iter().rev().fold(0_u32, |sum, byte| (sum << 8) | u32::from(*byte));
    let computed = checksum(bytes);
    if stored != computed {
        return Err(RecordError::Checksum { stored, computed });
    }
    Ok(M::decode(&bytes[HEAD..])?)
}

/// Covers the version and the content, so that a flipped version byte shows.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..1]), &bytes[HEAD..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::v1;

    #[test]
    fn every_flipped_bit_is_found() {
        let vote = v1::Vote { term: 7, node_id: 3, committed: true };
        let sealed = seal(&vote);
        assert_eq!(open::<v1::Vote>(&sealed).unwrap(), vote);
        for bit in 0..sealed.len() * 8 {
            let mut broken = sealed.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(open::<v1::Vote>(&broken).is_err(), "bit {bit}");
        }
        assert_eq!(open::<v1::Vote>(&sealed[..4]), Err(RecordError::Short(4)));
    }
}

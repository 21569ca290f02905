//! Who has the address for standbys, to and from the domain.

use std::time::Duration;

use super::{
    Malformed,
    convert::member_id,
    v1::{self, command as c},
};
use crate::{
    domain::MemberId,
    state::{Kind, Reader},
};

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// To the wire.
pub fn lend(member: &MemberId, id: u64, life: Duration) -> c::Kind {
    c::Kind::Lend(c::Lend { member: member.to_string(), id, life_ms: ms(life) })
}

/// To the wire.
pub fn end(id: u64, reason: &str) -> c::Kind {
    c::Kind::EndLend(c::EndLend { id, reason: reason.to_owned() })
}

/// From the wire.
///
/// # Errors
/// A name that is no member id.
pub fn lend_of(raw: &c::Lend) -> Result<Kind, Malformed> {
    let life = Duration::from_millis(raw.life_ms);
    Ok(Kind::Lend { member: member_id(&raw.member)?, id: raw.id, life })
}

/// To the wire; nothing before the first lend.
pub fn reader(reader: &Reader) -> Option<v1::Reader> {
    let member = reader.holder.as_ref().map(MemberId::to_string).unwrap_or_default();
    (reader.id > 0).then(|| v1::Reader { id: reader.id, member, life_ms: ms(reader.life) })
}

/// From the wire; absent: it was never lent.
///
/// # Errors
/// A name that is no member id.
pub fn reader_of(raw: Option<v1::Reader>) -> Result<Reader, Malformed> {
    let raw = raw.unwrap_or_default();
    let holder = if raw.member.is_empty() { None } else { Some(member_id(&raw.member)?) };
    Ok(Reader { id: raw.id, holder, life: Duration::from_millis(raw.life_ms) })
}

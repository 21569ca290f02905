//! Status codes with what a program can tell them apart by: `google.rpc.ErrorInfo`, of the domain [`DOMAIN`].

use std::collections::HashMap;

use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::v1;

/// Whose reasons these are.
pub const DOMAIN: &str = "matriarch";
/// A request with this header set to `status` is answered by a status where an operation has not begun, and not by a reply that says so.
pub const HEADER: &str = "matriarch-errors";

/// Why a request was not carried out. The names are part of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is for another member, cluster or generation.
    WrongTarget,
    /// Not as things are; asked again later it may be done.
    RefusedByPolicy,
    /// No Raft leader answers.
    NoLeader,
    /// Proposed, and nobody knows whether it was committed: ask again with the same request id.
    Undecided,
}

impl Reason {
    /// As it stands in `ErrorInfo.reason`.
    pub fn name(self) -> &'static str {
        match self {
            Reason::WrongTarget => "WRONG_TARGET",
            Reason::RefusedByPolicy => "REFUSED_BY_POLICY",
            Reason::NoLeader => "NO_LEADER",
            Reason::Undecided => "UNDECIDED",
        }
    }

    fn code(self) -> Code {
        match self {
            Reason::WrongTarget | Reason::RefusedByPolicy => Code::FailedPrecondition,
            Reason::NoLeader | Reason::Undecided => Code::Unavailable,
        }
    }
}

/// The status for this reason; `says` is for people, `facts` for programs.
pub fn status(reason: Reason, says: &str, facts: &[(&str, &str)]) -> Status {
    let facts: HashMap<String, String> =
        facts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let details = ErrorDetails::with_error_info(reason.name(), DOMAIN, facts);
    Status::with_error_details(reason.code(), says, details)
}

/// How the answer to one request is to tell that an operation has not begun.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    by_status: bool,
}

impl Told {
    /// As the request wants it.
    pub fn of<T>(request: &Request<T>) -> Told {
        Told { by_status: request.metadata().get(HEADER).is_some_and(|value| value == "status") }
    }

    /// The answer in that form. `leaderless`: no Raft leader is known here.
    ///
    /// # Errors
    /// The given one, or the operation has not begun.
    // tonic's own error type; boxing it here would only be undone by the caller.
    #[allow(clippy::result_large_err)]
    pub fn answer(
        self,
        answer: Result<Response<v1::OperationReply>, Status>,
        leaderless: bool,
    ) -> Result<Response<v1::OperationReply>, Status> {
        let answer = answer?;
        let reply = answer.get_ref();
        if reply.accepted || !self.by_status {
            return Ok(answer);
        }
        let reason = match (reply.undecided, leaderless) {
            // A manager that hears no leader hears of no member either: what it refuses it for says little.
            (_, true) => Reason::NoLeader,
            (true, false) => Reason::Undecided,
            (false, false) => Reason::RefusedByPolicy,
        };
        Err(status(reason, &reply.reason, &[]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(undecided: bool) -> Result<Response<v1::OperationReply>, Status> {
        let reason = "n2 does not answer".to_owned();
        Ok(Response::new(v1::OperationReply { reason, undecided, ..Default::default() }))
    }

    fn asked(header: Option<&'static str>) -> Request<()> {
        let mut request = Request::new(());
        header.map(|value| request.metadata_mut().insert(HEADER, value.parse().unwrap()));
        request
    }

    #[test]
    fn an_operation_that_has_not_begun_is_a_status_for_those_who_ask_for_one() {
        for header in [None, Some("reply")] {
            let answer = Told::of(&asked(header)).answer(refused(false), false).unwrap();
            assert!(!answer.get_ref().accepted, "as ever for those who don't: {header:?}");
        }
        let told = |leaderless, undecided| {
            let error = Told::of(&asked(Some("status"))).answer(refused(undecided), leaderless).unwrap_err();
            let info = error.get_details_error_info().unwrap();
            assert_eq!((info.domain.as_str(), error.message()), (DOMAIN, "n2 does not answer"));
            (error.code(), info.reason)
        };
        assert_eq!(told(false, false), (Code::FailedPrecondition, "REFUSED_BY_POLICY".to_owned()));
        assert_eq!(told(false, true), (Code::Unavailable, "UNDECIDED".to_owned()));
        for undecided in [false, true] {
            assert_eq!(told(true, undecided), (Code::Unavailable, "NO_LEADER".to_owned()));
        }
    }

    #[test]
    fn one_that_has_begun_and_any_other_error_stay_what_they_are() {
        let told = Told::of(&asked(Some("status")));
        let begun = v1::OperationReply { accepted: true, id: 7, ..Default::default() };
        assert_eq!(told.answer(Ok(Response::new(begun)), false).unwrap().get_ref().id, 7);
        let gone = told.answer(Err(Status::unavailable("gone")), false).unwrap_err();
        assert_eq!((gone.code(), gone.message()), (Code::Unavailable, "gone"));
    }
}

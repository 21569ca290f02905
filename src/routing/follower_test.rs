//! What PostgreSQL 15.18 sent, and what nobody would send, cut in every way.

use super::*;

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend((u32::try_from(body.len()).unwrap() + 4).to_be_bytes());
    out.extend(body);
    out
}

const CANCELLED: &[u8] =
    b"SWARNING\0VWARNING\0C01000\0Mcanceling wait for synchronous replication due to user request\0\
    DThe transaction has already committed locally, but might not have been replicated to the standby.\0\
    Fsyncrep.c\0L327\0RSyncRepWaitForLSN\0\0";
const TERMINATED: &[u8] =
    b"SWARNING\0VWARNING\0C57P01\0Mcanceling the wait for synchronous replication and terminating \
    connection due to administrator command\0DThe transaction has already committed locally, but might not have been \
    replicated to the standby.\0Fsyncrep.c\0L309\0RSyncRepWaitForLSN\0\0";
/// With `lc_messages = de_DE.UTF-8`.
const GERMAN: &[u8] =
    "SWARNUNG\0VWARNING\0C01000\0Mstorniere Warten auf synchrone Replikation wegen Benutzeraufforderung\0\
    DDie Transaktion wurde lokal bereits committet, aber möglicherweise noch nicht zum Standby repliziert.\0\
    Fsyncrep.c\0L327\0RSyncRepWaitForLSN\0\0"
        .as_bytes();
const OTHER: &[u8] = b"SNOTICE\0VNOTICE\0C00000\0Mtable \"t\" does not exist, skipping\0Ftablecmds.c\0L1292\0\
    RDropErrorMsgNonExistent\0\0";

/// A session that asked for `select 'xy'` and then inserted, up to the end of the notice; and what came after it.
fn recorded(notice: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let before = [
        message(b'R', &[0, 0, 0, 0]),
        message(b'S', b"server_version\x0015.18\0"),
        message(b'K', &[0, 0, 14, 1, 9, 9, 9, 9]),
        message(b'Z', b"I"),
        message(b'T', b"\0\x01?column?\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"),
        message(b'D', b"\0\x01\0\0\0\x02xy"),
        message(b'C', b"SELECT 1\0"),
        message(b'N', OTHER),
        message(b'I', b""),
        message(b'Z', b"I"),
        message(b'N', notice),
    ];
    (before.concat(), [message(b'C', b"INSERT 0 1\0"), message(b'Z', b"I")].concat())
}

/// Where the stream has to end, given in pieces.
fn ends<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Option<usize> {
    let mut follower = Follower::default();
    let mut passed = 0;
    for piece in pieces {
        if let Some(end) = follower.follow(piece) {
            return Some(passed + end);
        }
        passed += piece.len();
    }
    None
}

#[test]
fn a_recorded_stream_ends_after_the_notice_wherever_it_is_cut() {
    for notice in [CANCELLED, TERMINATED, GERMAN] {
        let (before, after) = recorded(notice);
        let stream = [&before[..], &after[..]].concat();
        assert_eq!(ends([&stream[..]]), Some(before.len()));
        assert_eq!(ends(stream.chunks(1)), Some(before.len()));
        for first in 0..stream.len() {
            assert_eq!(ends([&stream[..first], &stream[first..]]), Some(before.len()), "cut at {first}");
            // And once more in the rest, at the places that are most likely to go wrong.
            for second in [first + 1, first + 4, first + 5, first + 6].into_iter().filter(|s| *s < stream.len()) {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(ends(pieces), Some(before.len()), "cut at {first} and {second}");
            }
        }
    }
}

#[test]
fn nothing_else_ends_a_stream() {
    let with = |body: &[u8]| {
        let (before, after) = recorded(body);
        ends([&before[..], &after[..]])
    };
    assert_eq!(with(OTHER), None);
    assert_eq!(with(b"\0"), None);
    assert_eq!(with(b""), None);
    // The name as text of a message, as the beginning of another name, cut short, and in a line for debugging.
    assert_eq!(with(b"SWARNING\0VWARNING\0C01000\0MRSyncRepWaitForLSN\0Rexec_stmt_raise\0\0"), None);
    assert_eq!(with(b"VWARNING\0RSyncRepWaitForLSNs\0\0"), None);
    assert_eq!(with(b"VWARNING\0RSyncRepWaitForLS\0\0"), None);
    assert_eq!(with(b"VDEBUG\0RSyncRepWaitForLSN\0\0"), None);
    // The same words in a row and in an error are none of the server's about a commit.
    for kind in [b'D', b'E', b'd', b'A'] {
        assert_eq!(ends([&message(kind, CANCELLED)[..]]), None);
    }
}

#[test]
fn a_long_context_before_the_routine_is_no_way_around() {
    let context = "x".repeat(1 << 20);
    let notice = format!("SWARNING\0VWARNING\0C01000\0Mm\0W{context}\0Fsyncrep.c\0L327\0RSyncRepWaitForLSN\0\0");
    let (before, after) = recorded(notice.as_bytes());
    let stream = [before.clone(), after].concat();
    assert_eq!(ends(stream.chunks(8_192)), Some(before.len()));
}

#[test]
fn rows_of_any_size_are_passed_over() {
    let (before, after) = recorded(CANCELLED);
    let row = message(b'D', &vec![b'N'; 3 << 20]);
    let stream = [row.clone(), before.clone(), after].concat();
    assert_eq!(ends(stream.chunks(4_096)), Some(row.len() + before.len()));
}

#[test]
fn what_is_no_postgresql_is_not_followed_and_a_wal_sender_is() {
    let (before, _) = recorded(CANCELLED);
    let after = ends([&message(b'W', b"\0\0\0")[..], &before]);
    assert!(after.is_some(), "a session with replication=database may commit after it has streamed");
    assert_eq!(ends([&[b'Z', 0, 0, 0, 3][..], &before]), None);
    // An error as protocol 2 has it: its text is taken for a length that nothing reaches.
    assert_eq!(ends([&b"Ecould not fork new process for connection: "[..], &before]), None);
}

proptest::proptest! {
    #[test]
    fn the_pieces_do_not_matter(
        kinds in proptest::collection::vec((0usize..6, 0usize..40), 0..12),
        sizes in proptest::collection::vec(1usize..50, 1..30),
    ) {
        let bodies: Vec<Vec<u8>> = kinds.iter().map(|(kind, size)| match kind {
            0 => message(b'N', CANCELLED),
            1 => message(b'N', OTHER),
            2 => message(b'I', b""),
            _ => message(b'D', &vec![b'N'; *size]),
        }).collect();
        let expected = kinds.iter().position(|(kind, _)| *kind == 0)
            .map(|first| bodies[..=first].iter().map(Vec::len).sum::<usize>());
        let stream = bodies.concat();
        let mut pieces = Vec::new();
        let (mut rest, mut sizes) = (&stream[..], sizes.iter().cycle());
        while !rest.is_empty() {
            let (piece, left) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
            pieces.push(piece);
            rest = left;
        }
        proptest::prop_assert_eq!(ends(pieces), expected);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(0u8.., 0..200), cut in 0usize..200) {
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        let _ = ends([first, second]);
    }
}

#[test]
fn it_is_known_how_often_a_server_was_ready_wherever_the_bytes_are_cut() {
    let begin = [message(b'Z', b"I"), message(b'C', b"BEGIN\0"), message(b'Z', b"T")].concat();
    let stream = [&begin[..], &message(b'Z', b"I")].concat();
    for cut in 0..stream.len() {
        let mut follower = Follower::default();
        follower.follow(&stream[..cut]);
        let expected = if (6..begin.len()).contains(&cut) { Some(1) } else { None };
        assert_eq!(follower.ready_outside(), expected, "cut at {cut}");
        follower.follow(&stream[cut..]);
        assert_eq!(follower.ready_outside(), Some(3));
    }
    let mut follower = Follower::default();
    follower.follow(&[&stream[..], b"E\0\0\0\x01"].concat());
    assert_eq!(follower.ready_outside(), None, "no message is so short");
}

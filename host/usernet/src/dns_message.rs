//! Questions for names and their answers, as far as a relay has to understand them.

use crate::rules::PolicyRules;
use control::DenyReason;
use simple_dns::rdata::RData;
use simple_dns::{Name, OPCODE, Packet, PacketFlag, RCODE};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Least bytes of a message.
const HEADER: usize = 12;

/// A question that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DnsQuestion {
    /// The asker's number of it.
    pub(crate) id: u16,
    /// In small letters, without a dot at its end. A name with other characters than a host name
    /// has is one that no rule can mean.
    pub(crate) name: String,
}

/// Why a message is not passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DnsFault {
    /// It is no message: it has no answer either.
    Garbage,
    /// It is one, and cannot be answered: this is the answer.
    Refused(Vec<u8>),
}

/// Reads a question.
pub(crate) fn question(message: &[u8]) -> Result<DnsQuestion, DnsFault> {
    let Some(id) = message.get(..2).filter(|_| message.len() >= HEADER) else {
        return Err(DnsFault::Garbage);
    };
    let id = u16::from_be_bytes([id[0], id[1]]);
    let malformed = || match error_header(message, RCODE::FormatError) {
        Some(answer) => DnsFault::Refused(answer),
        None => DnsFault::Garbage,
    };
    let packet = Packet::parse(message).map_err(|_| malformed())?;
    if packet.has_flags(PacketFlag::RESPONSE) {
        return Err(DnsFault::Garbage);
    }
    let plain = packet.opcode() == OPCODE::StandardQuery;
    match &packet.questions[..] {
        [question] if plain && packet.answers.is_empty() => Ok(DnsQuestion {
            id,
            name: text(&question.qname),
        }),
        _ => Err(malformed()),
    }
}

/// A name as rules want it. What no host name has becomes a character that none has.
fn text(name: &Name<'_>) -> String {
    let labels = name.as_bytes().map(|label| {
        let plain = |b: &u8| match b {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => char::from(*b),
            b'A'..=b'Z' => char::from(b.to_ascii_lowercase()),
            _ => '?',
        };
        label.iter().map(plain).collect::<String>()
    });
    labels.collect::<Vec<_>>().join(".")
}

/// An answer without a question, for one that could not be read.
fn error_header(message: &[u8], code: RCODE) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes([*message.first()?, *message.get(1)?]);
    let mut reply = Packet::new_reply(id);
    *reply.rcode_mut() = code;
    reply.build_bytes_vec().ok()
}

/// The answer that a question fails with `code`.
pub(crate) fn failure(message: &[u8], code: RCODE) -> Option<Vec<u8>> {
    let Ok(question) = Packet::parse(message) else {
        return error_header(message, code);
    };
    let mut reply = Packet::new_reply(question.id());
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE);
    if question.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    *reply.rcode_mut() = code;
    reply.questions = question.questions;
    reply.build_bytes_vec().ok()
}

/// What a server's answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DnsVerdict {
    /// Not an answer to this question: another may come.
    Foreign,
    /// The server cannot answer; another one may.
    Failed,
    /// The guest may have it.
    Pass,
    /// The guest must not hear it.
    Denied(DenyReason),
}

/// Looks at a server's answer to `asked`, which has passed [`question`], and remembers the
/// addresses of allowed names.
pub(crate) fn answer(
    asked: &[u8],
    name: &str,
    answer: &[u8],
    rules: &mut PolicyRules,
    now: Instant,
) -> DnsVerdict {
    let (Ok(asked), Ok(answer)) = (Packet::parse(asked), Packet::parse(answer)) else {
        return DnsVerdict::Foreign;
    };
    let same = match (&asked.questions[..], &answer.questions[..]) {
        ([asked], [answered]) => {
            text(&asked.qname) == text(&answered.qname)
                && asked.qtype == answered.qtype
                && asked.qclass == answered.qclass
        }
        // A server that cannot read the question does not say it again.
        ([_], []) => answer.answers.is_empty(),
        _ => false,
    };
    if !answer.has_flags(PacketFlag::RESPONSE) || asked.id() != answer.id() || !same {
        return DnsVerdict::Foreign;
    }
    if matches!(
        answer.rcode(),
        RCODE::ServerFailure | RCODE::Refused | RCODE::NotImplemented
    ) {
        return DnsVerdict::Failed;
    }
    let records = answer.answers.iter().chain(&answer.additional_records);
    let mut denied = None;
    for record in records {
        let address: IpAddr = match &record.rdata {
            RData::A(a) => Ipv4Addr::from(a.address).into(),
            RData::AAAA(aaaa) => Ipv6Addr::from(aaaa.address).into(),
            _ => continue,
        };
        let ttl = Duration::from_secs(record.ttl.into());
        if let Err(reason) = rules.answer(name, address, ttl, now) {
            denied = Some(reason);
        }
    }
    denied.map_or(DnsVerdict::Pass, DnsVerdict::Denied)
}

#[cfg(test)]
pub(crate) mod test {
    use super::*;
    use control::NetPolicy;
    use proptest::prelude::*;
    use simple_dns::rdata::A;
    use simple_dns::{CLASS, QCLASS, QTYPE, Question, ResourceRecord, TYPE};

    /// A question for the IPv4 addresses of a name.
    pub(crate) fn ask(id: u16, name: &str) -> Vec<u8> {
        let mut packet = Packet::new_query(id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let (class, kind) = (QCLASS::CLASS(CLASS::IN), QTYPE::TYPE(TYPE::A));
        let name = Name::new_unchecked(name);
        packet
            .questions
            .push(Question::new(name, kind, class, false));
        packet.build_bytes_vec().unwrap()
    }

    /// Its answer with these addresses.
    pub(crate) fn reply(question: &[u8], addresses: &[Ipv4Addr]) -> Vec<u8> {
        let asked = Packet::parse(question).unwrap();
        let mut packet = Packet::new_reply(asked.id());
        for address in addresses {
            let name = asked.questions[0].qname.clone();
            let record = RData::A(A::from(*address));
            let record = ResourceRecord::new(name, CLASS::IN, 30, record);
            packet.answers.push(record);
        }
        packet.questions = asked.questions;
        packet.build_bytes_vec().unwrap()
    }

    fn rules() -> PolicyRules {
        PolicyRules::new(NetPolicy::default(), Vec::new())
    }

    #[test]
    fn a_question_has_a_name_in_small_letters() {
        let asked = question(&ask(7, "Example.COM")).unwrap();
        assert_eq!((asked.id, asked.name.as_str()), (7, "example.com"));
    }

    #[test]
    fn a_dot_within_a_label_makes_no_other_name() {
        let mut message = ask(7, "aXexample.com");
        let at = message.iter().position(|b| *b == b'X').unwrap();
        message[at] = b'.';
        assert_eq!(question(&message).unwrap().name, "a?example.com");
    }

    #[test]
    fn failures_say_the_question_again() {
        let asked = ask(7, "example.com");
        let failed = failure(&asked, RCODE::NameError).unwrap();
        let packet = Packet::parse(&failed).unwrap();
        assert_eq!((packet.id(), packet.rcode()), (7, RCODE::NameError));
        assert_eq!(packet.questions.len(), 1);
        assert!(packet.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED));
        let two = [&asked[..4], &[0, 2], &asked[6..], &asked[HEADER..]].concat();
        assert!(matches!(question(&two), Err(DnsFault::Refused(_))));
        assert_eq!(question(&asked[..11]), Err(DnsFault::Garbage));
        assert_eq!(question(&failed), Err(DnsFault::Garbage));
    }

    #[test]
    fn an_answer_must_be_of_the_question_and_of_allowed_addresses() {
        let (mut rules, now) = (rules(), Instant::now());
        let asked = ask(7, "example.com");
        let good = [Ipv4Addr::new(8, 8, 8, 8)];
        let bad = [Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(10, 0, 0, 1)];
        let mut look = |said: &[u8]| answer(&asked, "example.com", said, &mut rules, now);
        assert_eq!(look(&reply(&asked, &good)), DnsVerdict::Pass);
        let denied = DnsVerdict::Denied(DenyReason::Rebinding);
        assert_eq!(look(&reply(&asked, &bad)), denied);
        for foreign in [ask(8, "example.com"), ask(7, "example.net")] {
            assert_eq!(look(&reply(&foreign, &good)), DnsVerdict::Foreign);
        }
        assert_eq!(look(&asked), DnsVerdict::Foreign);
        let failed = failure(&asked, RCODE::ServerFailure).unwrap();
        assert_eq!(look(&failed), DnsVerdict::Failed);
    }

    proptest! {
        #[test]
        fn any_message_is_survived(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let (mut rules, now) = (rules(), Instant::now());
            let asked = ask(7, "example.com");
            let mut said = reply(&asked, &[Ipv4Addr::new(8, 8, 8, 8)]);
            for (at, byte) in bytes.iter().enumerate() {
                let length = said.len();
                said[at * 3 % length] ^= byte;
            }
            for message in [&bytes, &said] {
                let _ = question(message);
                let _ = failure(message, RCODE::ServerFailure);
                let _ = answer(&asked, "example.com", message, &mut rules, now);
            }
        }
    }
}

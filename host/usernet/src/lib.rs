//! A user-mode network for one sandbox: frames of its guest on one side, sockets of the host on the
//! other, and the policy between them.
#![forbid(unsafe_code)]

mod chunked_body;
mod confine;
mod dns_message;
mod dns_relay;
mod dns_stream;
mod flow_context;
mod flow_table;
mod fuzz;
mod host_socket;
mod inbound;
mod intercept_fault;
mod intercepted_flow;
mod interception;
mod net_stack;
mod outbox;
mod pace;
mod poller;
mod reply;
mod report;
mod request_head;
mod request_stream;
mod reserved;
mod rules;
mod serve;
mod sniff;
mod tcp_flow;
mod tcp_stack;
mod tcp_table;
mod tls_io;
mod udp_table;

pub use confine::{ConfineError, NetUser, confine};
pub use fuzz::fuzz_frames;
pub use request_stream::fuzz_requests;
pub use serve::{ServeError, serve};

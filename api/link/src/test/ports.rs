//! Connections to ports of the guest.

use super::*;

const MOST: usize = wire::MAX_PORT_STREAMS;

/// A connection to a port of the guest, and its stream.
async fn port(link: &Link, agent: &mut Agent) -> (PortStream, u32) {
    let opened = {
        let link = link.clone();
        tokio::spawn(async move { link.connect_port(8080, MOST).await })
    };
    let (id, request) = agent.next_open().await;
    assert_eq!(request, [20, 0x90, 0x1f]);
    let event = Message::Event(StreamEvent::Connected);
    agent.tell(id, &event).await;
    (opened.await.unwrap().unwrap(), id)
}

fn port_data(bytes: &[u8]) -> Message<'_> {
    let channel = DataChannel::Port;
    Message::Data { channel, bytes }
}

#[tokio::test]
async fn each_half_of_a_connection_to_a_port_ends_by_itself() {
    let (link, mut agent) = pair().await;
    let (mut stream, id) = port(&link, &mut agent).await;
    agent.tell(id, &port_data(b"first")).await;
    agent.tell(id, &Message::End).await;
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"first");
    stream.write_all(b"later").await.unwrap();
    stream.shutdown().await.unwrap();
    let bytes = b"later".to_vec();
    assert_eq!(agent.heard().await, Some(Said::Data { stream: id, bytes }));
    assert_eq!(agent.heard().await, Some(Said::End { stream: id }));
    let done = Message::Reply(Reply::Done(0));
    agent.tell(id, &done).await;
    stream.write_all(b"x").await.unwrap_err();
    drop(stream);
    // Nothing is said of a stream that has ended.
    let (stream, id) = port(&link, &mut agent).await;
    drop(stream);
    let code = ResetCode::Cancelled;
    assert_eq!(agent.heard().await, Some(Said::Reset { stream: id, code }));
}

#[tokio::test]
async fn a_writer_waits_for_a_program_that_does_not_read() {
    let (link, mut agent) = pair().await;
    let (mut stream, id) = port(&link, &mut agent).await;
    let window = INPUT_WINDOW as usize;
    let writer = tokio::spawn(async move {
        stream.write_all(&vec![1; 3 * window]).await.unwrap();
        stream
    });
    let mut got = 0;
    while got < 3 * window {
        match agent.heard().await {
            Some(Said::Data { bytes, .. }) => got += bytes.len(),
            other => panic!("{other:?}"),
        }
        if got % window == 0 && got < 3 * window {
            let silence = timeout(Duration::from_millis(50), agent.heard()).await;
            assert!(silence.is_err(), "more than the window");
            agent.tell(id, &Message::Credit(INPUT_WINDOW)).await;
        }
    }
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn a_reader_that_waits_holds_a_window_and_no_more() {
    let (link, mut agent) = pair().await;
    let (mut stream, id) = port(&link, &mut agent).await;
    let window = wire::PORT_WINDOW as usize;
    for piece in vec![5; window].chunks(MAX_PAYLOAD) {
        agent.tell(id, &port_data(piece)).await;
    }
    let silence = timeout(Duration::from_millis(50), agent.heard()).await;
    assert!(silence.is_err(), "credit for what nobody has read");
    let mut got = vec![0; window];
    stream.read_exact(&mut got).await.unwrap();
    match agent.heard().await {
        Some(Said::Credit { bytes, .. }) => assert!(bytes <= wire::PORT_WINDOW),
        other => panic!("{other:?}"),
    }
    for _ in 0..4 {
        agent.tell(id, &port_data(&[5; MAX_PAYLOAD])).await;
    }
    let code = ResetCode::FlowControl;
    loop {
        match agent.heard().await {
            Some(Said::Credit { .. }) => {}
            other => {
                assert_eq!(other, Some(Said::Reset { stream: id, code }));
                break;
            }
        }
    }
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap_err();
    assert!(rest.len() <= 2 * window, "{} bytes were kept", rest.len());
}

#[tokio::test]
async fn connections_to_ports_have_streams_of_their_own() {
    let (link, mut agent) = pair().await;
    let mut open = Vec::new();
    for _ in 0..wire::MAX_PORT_STREAMS {
        open.push(port(&link, &mut agent).await);
    }
    let full = link.connect_port(8080, MOST).await.unwrap_err();
    assert!(matches!(full, LinkError::PortsBusy(MOST)), "{full}");
    drop(started(&link, &mut agent, 7).await);
    open.pop();
    let full = link.connect_port(8080, MOST - 1).await.unwrap_err();
    assert!(matches!(full, LinkError::PortsBusy(_)), "{full}");
    port(&link, &mut agent).await;
}

#[tokio::test]
async fn what_a_guest_says_of_its_ports_is_told_and_checked() {
    let (link, mut agent) = pair().await;
    let asked = {
        let link = link.clone();
        tokio::spawn(async move { link.connect_port(8080, MOST).await })
    };
    let id = agent.request().await;
    let error = ReplyError {
        code: ErrorCode::Io,
        errno: 111,
        message: "refused",
    };
    agent.tell(id, &Message::Reply(Reply::Error(error))).await;
    let refused = asked.await.unwrap().unwrap_err();
    assert_eq!(refused.refusal().map(|refusal| refusal.errno), Some(111));

    let (mut stream, id) = port(&link, &mut agent).await;
    let errno = 104;
    let error = ReplyError { errno, ..error };
    agent.tell(id, &Message::Reply(Reply::Error(error))).await;
    let reset = stream.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);

    let (mut stream, id) = port(&link, &mut agent).await;
    agent.tell(id, &stdout(b"x")).await;
    stream.read(&mut [0; 8]).await.unwrap_err();

    let (_stream, id) = port(&link, &mut agent).await;
    agent.tell(id, &Message::End).await;
    agent.tell(id, &port_data(b"after the end")).await;
    let code = ResetCode::FlowControl;
    loop {
        match agent.heard().await {
            Some(Said::Reset { stream, code: said }) if stream == id => {
                break assert_eq!(said, code);
            }
            Some(Said::Reset { .. }) => {}
            other => panic!("{other:?}"),
        }
    }

    // No other stream has such an end: that costs the link.
    let (_process, id) = started(&link, &mut agent, 9).await;
    agent.tell(id, &Message::End).await;
    link.closed().await;
}

#[tokio::test]
async fn an_agent_from_before_ports_is_not_asked_for_one() {
    let (link, mut agent) = pair_with(wire::boot_flags::FREEZER).await;
    let refused = link.connect_port(80, MOST).await.unwrap_err();
    assert!(matches!(refused, LinkError::OldAgent(_)), "{refused}");
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let resumed = Link::resume(ours, link.rest());
    let refused = resumed.connect_port(80, MOST).await.unwrap_err();
    assert!(matches!(refused, LinkError::OldAgent(_)), "{refused}");
    drop(link);
    assert_eq!(agent.heard().await, None);
}

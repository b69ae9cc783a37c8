use super::held::GRACE;
use super::*;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::time::sleep;

const MIB: usize = 1 << 20;

/// A body that comes in pieces of 64 KiB, and is held for a moment.
async fn whole(
    budget: &Arc<BodyBudget>,
    announced: bool,
    length: usize,
) -> Result<(), BodyRefusal> {
    let hold = budget.hold(None);
    hold.begin(announced.then_some(length), 16 * MIB);
    hold.keep(0).await?;
    for _ in 0..length / SMALL {
        hold.keep(SMALL).await?;
        tokio::task::yield_now().await;
    }
    sleep(Duration::from_millis(10)).await;
    Ok(())
}

/// A body that holds so much and does not go on.
async fn stuck(budget: &Arc<BodyBudget>, length: usize) -> BodyHold {
    let hold = budget.hold(None);
    hold.begin(Some(length), 16 * MIB);
    hold.keep(1).await.unwrap();
    hold
}

#[tokio::test(start_paused = true)]
async fn many_long_bodies_take_turns_within_the_budget() {
    let budget = BodyBudget::new(128);
    let bodies = join_all((0..40).map(|n| whole(&budget, n % 2 == 0, 16 * MIB)));
    let watched = async {
        loop {
            assert!(budget.held() <= 128 * MIB, "{} bytes", budget.held());
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        done = bodies => assert!(done.iter().all(Result::is_ok), "{done:?}"),
        () = watched => {}
    }
    assert_eq!(budget.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_small_body_does_not_wait_for_long_ones() {
    let budget = BodyBudget::new(64);
    let _holds = stuck(&budget, 16 * MIB).await;
    let waiting = tokio::spawn({
        let budget = Arc::clone(&budget);
        async move { whole(&budget, true, 16 * MIB).await }
    });
    tokio::task::yield_now().await;
    let small = whole(&budget, true, SMALL);
    timeout(Duration::from_millis(100), small)
        .await
        .unwrap()
        .unwrap();
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_ended_when_another_waits_and_only_then() {
    let budget = BodyBudget::new(64);
    let slow = stuck(&budget, 16 * MIB).await;
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(slow.ended().now_or_never(), None, "nobody waits");
    let begin = Instant::now();
    let ended = async {
        let why = slow.ended().await;
        drop(slow);
        why
    };
    let (why, other) = tokio::join!(ended, whole(&budget, true, 16 * MIB));
    assert!(why.slow && why.to_string().contains("64 MiB"), "{why}");
    other.unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_fast_enough_is_not_ended_and_the_other_is_refused_in_time() {
    let budget = BodyBudget::new(64);
    let fast = stuck(&budget, 16 * MIB).await;
    let come = async {
        for _ in 0..60 {
            sleep(Duration::from_secs(1)).await;
            fast.progress(MIB);
        }
    };
    let begin = Instant::now();
    let refused = async {
        let why = whole(&budget, true, 16 * MIB).await.unwrap_err();
        assert!(!why.slow);
        begin.elapsed()
    };
    let ((), waited) = tokio::join!(come, refused);
    assert!(
        waited >= WAIT && waited < WAIT + Duration::from_secs(1),
        "{waited:?}"
    );
    assert_eq!(fast.ended().now_or_never(), None);
}

#[tokio::test(start_paused = true)]
async fn slow_small_bodies_do_not_keep_another_small_one_out() {
    let budget = BodyBudget::new(64);
    let mut slow = Vec::new();
    while budget.small.free.available_permits() > SMALL * COST / UNIT {
        let hold = budget.hold(None);
        hold.begin(None, 16 * MIB);
        hold.keep(SMALL).await.unwrap();
        slow.push(tokio::spawn(async move {
            hold.ended().await;
        }));
    }
    let begin = Instant::now();
    let more = join_all((0..8).map(|_| whole(&budget, true, SMALL))).await;
    assert!(more.iter().all(Result::is_ok), "{more:?}");
    assert!(begin.elapsed() < GRACE * 2, "{:?}", begin.elapsed());
    let ended = slow.iter().filter(|one| one.is_finished()).count();
    assert!(
        (1..slow.len()).contains(&ended),
        "{ended} of {}",
        slow.len()
    );
    slow.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_large_memory_leaves_half_of_the_small() {
    let budget = BodyBudget::new(64);
    let first = stuck(&budget, 16 * MIB).await;
    first.settle();
    // Each says nothing of its length, so that it holds small memory until it is known to be long.
    let grow = |_| async {
        let hold = budget.hold(None);
        hold.begin(None, 16 * MIB);
        hold.keep(SMALL).await?;
        hold.keep(1).await
    };
    let all = join_all((0..100).map(grow));
    let begin = Instant::now();
    let small = async {
        sleep(Duration::from_secs(5)).await;
        assert!(budget.small.free.available_permits() >= budget.small.units / 2);
    };
    let (all, ()) = tokio::join!(all, small);
    assert!(
        all.iter().all(Result::is_err),
        "the first is whole, and is not ended"
    );
    assert!(begin.elapsed() < WAIT + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn small_bodies_that_come_by_and_by_do_not_wait_for_each_other() {
    let budget = BodyBudget::new(64);
    let body = |announced: bool| {
        let hold = budget.hold(None);
        hold.begin(announced.then_some(SMALL), 16 * MIB);
        async move {
            for _ in 0..4 {
                hold.keep(SMALL / 4).await?;
                sleep(Duration::from_millis(1)).await;
            }
            Ok::<_, BodyRefusal>(())
        }
    };
    let begin = Instant::now();
    let done = join_all((0..1000).map(|n| body(n % 2 == 0))).await;
    assert!(done.iter().all(Result::is_ok), "some were refused");
    assert!(begin.elapsed() < WAIT / 2, "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_its_own_sandbox_ends_nobody() {
    let budget = BodyBudget::new(256);
    let other = budget.hold(Some("other"));
    other.begin(Some(16 * MIB), 16 * MIB);
    other.keep(1).await.unwrap();
    let mut own = Vec::new();
    for _ in 0..2 {
        let hold = budget.hold(Some("own"));
        hold.begin(Some(SMALL + 1), 16 * MIB);
        hold.keep(1).await.unwrap();
        own.push(hold);
    }
    let third = budget.hold(Some("own"));
    third.begin(Some(SMALL + 1), 16 * MIB);
    third.keep(1).await.unwrap_err();
    assert_eq!(
        other.ended().now_or_never(),
        None,
        "there was memory enough"
    );
}

#[tokio::test]
async fn what_is_dropped_or_released_is_free() {
    let budget = BodyBudget::new(64);
    let hold = stuck(&budget, 16 * MIB).await;
    assert_eq!(budget.held(), 16 * MIB * COST);
    hold.release();
    assert_eq!(budget.held(), 0);
    hold.begin(Some(10), 16 * MIB);
    hold.keep(10).await.unwrap();
    assert_eq!(budget.held(), UNIT);
    hold.release();
    hold.begin(None, 16 * MIB);
    hold.keep(10).await.unwrap();
    assert_eq!(budget.held(), SMALL * COST, "it may become as long");
    drop(hold);
    assert_eq!(budget.held(), 0);
    assert!(budget.holds.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn those_of_one_sandbox_do_not_keep_another_one_out() {
    let budget = BodyBudget::new(256);
    let mut slow = Vec::new();
    for _ in 0..200 {
        let budget = Arc::clone(&budget);
        slow.push(tokio::spawn(async move {
            let hold = budget.hold(Some("one"));
            hold.begin(Some(16 * MIB), 16 * MIB);
            hold.keep(0).await?;
            Err::<(), _>(hold.ended().await)
        }));
    }
    tokio::task::yield_now().await;
    let hold = budget.hold(Some("other"));
    hold.begin(Some(16 * MIB), 16 * MIB);
    let begin = Instant::now();
    hold.keep(0).await.unwrap();
    assert!(begin.elapsed() < GRACE * 2, "{:?}", begin.elapsed());
    slow.iter().for_each(tokio::task::JoinHandle::abort);

    // Nor do small ones: who has more than the share of its sandbox waits, and is refused in time.
    let mut held = Vec::new();
    let refused = loop {
        let hold = budget.hold(Some("one"));
        hold.begin(None, 16 * MIB);
        match hold.keep(SMALL).await {
            Ok(()) => held.push(hold),
            Err(why) => break why,
        }
    };
    assert!(!refused.slow && budget.small.free.available_permits() > budget.small.units / 2);
}

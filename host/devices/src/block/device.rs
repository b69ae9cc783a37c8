//! The block device on the event loop: requests, split into file operations of the ring.
//!
//! Reads go straight from the files into guest memory, one operation per run of one
//! [`BlockSource`]; writes of whole blocks go straight from guest memory into the layer. A write
//! that covers part of a block that is not in the layer yet reads the block from below into a
//! buffer of ours, lays the guest's bytes over it and writes it whole. A block's bit is set when
//! its bytes are in the layer, never before.
//!
//! Hazards: two requests on the fly may touch one block, which is the guest's own race except when
//! one of them fills up a block as above: it would bring back old sectors that the other has just
//! written. So a write waits (and the queue behind it) while an overlapping one is in flight, if
//! either has a partial block ([`ChangedExtent::conflicts`]).
//!
//! A host that has no room for the layer is not the guest's fault: a change that does not fit is
//! held, with its request, and tried again until it does ([`HeldOps`]).

use super::config::{BlockConfig, BlockError, DiskParent};
use super::held::HeldOps;
use super::layers::DiskLayers;
use super::map::{BLOCK, BlockMap, BlockSource};
use super::request::{DiskAction, DiskRequest, DiskShape};
use super::spec::{DEVICE_ID, HEADER_LEN, ID_LEN, QUEUE_SIZES, S_IOERR, S_OK};
use super::state::BlockV1;
use super::{config, held, state};
use crate::attachment::{Attachment, Contents};
use crate::chain::{self, BufferChain};
use crate::device::{BrokenQueue, Device, DeviceContext, DeviceFault, NextTurn};
use crate::metrics::BlockMetrics;
use crate::mmio::{DeviceIdentity, F_EVENT_IDX, F_INDIRECT_DESC};
use crate::ring::{IoPiece, OpCompletion};
use crate::state::{DeviceKind, InvalidState, StateRefusal, take};
use std::fs::File;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// Requests in flight.
const MAX_ACTIVE: usize = 64;
/// File operations in flight for one request.
const WINDOW: usize = 8;
/// Requests taken per turn.
const BUDGET: usize = 64;

const BLOCK_LEN: usize = 4096;
const ZEROS: [u8; BLOCK_LEN] = [0; BLOCK_LEN];

/// A request being worked on.
#[derive(Debug)]
struct ActiveRequest {
    chain: BufferChain,
    request: DiskRequest,
    status: GuestAddress,
    /// Bytes of the request for which operations have been issued.
    cursor: u64,
    in_flight: usize,
    failed: bool,
}

/// One operation of the ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskOp {
    pub(super) slot: usize,
    step: OpStep,
    /// Where on the disk.
    offset: u64,
    /// Where in the request's data.
    at: u64,
    len: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpStep {
    /// Into guest memory.
    Read(BlockSource),
    /// Of guest memory (or zeros) into the layer.
    Write,
    /// The block from below the layer into a buffer; the request covers `offset` and `len` of it.
    Fill(BlockSource),
    /// The completed block into the layer.
    WriteFilled,
    /// Free the layer's blocks.
    Punch,
}

impl OpStep {
    /// Whether it may need room in the layer that is not there yet.
    const fn changes_layer(self) -> bool {
        matches!(self, Self::Write | Self::WriteFilled | Self::Punch)
    }
}

/// Bytes a request changes.
#[derive(Clone, Copy, Debug)]
struct ChangedExtent {
    start: u64,
    end: u64,
}

impl ChangedExtent {
    fn of(action: DiskAction) -> Option<Self> {
        let (start, len) = match action {
            DiskAction::Write { offset, len } => (offset, u64::try_from(len).ok()?),
            DiskAction::Discard { offset, len } | DiskAction::Zero { offset, len } => (offset, len),
            _ => return None,
        };
        Some(Self {
            start,
            end: start + len,
        })
    }

    fn partial(self) -> bool {
        !self.start.is_multiple_of(BLOCK) || !self.end.is_multiple_of(BLOCK)
    }

    /// The two must not be in flight together.
    fn conflicts(self, other: Self) -> bool {
        let overlap = self.start / BLOCK < other.end.div_ceil(BLOCK)
            && other.start / BLOCK < self.end.div_ceil(BLOCK);
        overlap && (self.partial() || other.partial())
    }
}

/// The block device.
#[derive(Debug)]
pub struct Block {
    // Fixed configuration
    base: File,
    layer: Option<Arc<File>>,
    parent: Option<Arc<File>>,
    disk: DiskShape,
    base_len: u64,
    serial: [u8; ID_LEN],
    // Runtime glue
    queue: Option<Queue>,
    metrics: Arc<BlockMetrics>,
    spare_chains: Vec<BufferChain>,
    spare_pieces: Vec<Vec<IoPiece>>,
    // Volatile state
    map: BlockMap,
    active: Vec<Option<ActiveRequest>>,
    ops: Vec<Option<DiskOp>>,
    /// A request that waits for others to end; the queue waits with it.
    stalled: Option<ActiveRequest>,
    kicked: bool,
    used: bool,
    /// What the host has no room for.
    held: HeldOps<DiskOp>,
    error_logged: bool,
}

impl Block {
    /// A device with these files.
    ///
    /// # Errors
    /// [`BlockError`] for an unusable disk.
    pub fn new(config: BlockConfig) -> Result<Self, BlockError> {
        let base_len = config::prepare(&config)?;
        let mut serial = [0; ID_LEN];
        let len = config.serial.len().min(ID_LEN);
        serial[..len].copy_from_slice(&config.serial.as_bytes()[..len]);
        Ok(Self {
            disk: DiskShape {
                size: config.size,
                writable: config.layer.is_some(),
            },
            map: BlockMap::new(config.size, base_len),
            base: config.base,
            layer: config.layer.map(Arc::new),
            parent: config.parent.0.map(Arc::new),
            base_len,
            serial,
            queue: None,
            metrics: Arc::default(),
            spare_chains: Vec::new(),
            spare_pieces: Vec::new(),
            active: (0..MAX_ACTIVE).map(|_| None).collect(),
            ops: Vec::new(),
            stalled: None,
            kicked: false,
            used: false,
            held: HeldOps::default(),
            error_logged: false,
        })
    }

    /// Its counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<BlockMetrics> {
        self.metrics.clone()
    }

    /// Reports what is done.
    fn report(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        if let Some(queue) = self.queue.as_mut().filter(|_| mem::take(&mut self.used)) {
            cx.interrupt_if_needed(queue)?;
        }
        Ok(())
    }

    /// Takes requests off the queue.
    fn take_requests(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        for _ in 0..BUDGET {
            if let Some(active) = self.stalled.take() {
                self.begin(active, cx)?;
            }
            let room = self.active.iter().any(Option::is_none);
            let Some(queue) = self.queue.as_mut().filter(|_| room && self.kicked) else {
                break;
            };
            if self.stalled.is_some() {
                break;
            }
            let Some(descriptors) = queue.iter(cx.memory)?.next() else {
                self.kicked = queue.enable_notification(cx.memory)?;
                continue;
            };
            let mut chain = self.spare_chains.pop().unwrap_or_default();
            let loaded = chain.load(descriptors);
            let request = loaded.and_then(|()| DiskRequest::parse(cx.memory, &chain, self.disk));
            let placed = request.and_then(|r| Ok((r, r.status_address(&chain)?)));
            match placed {
                Ok((request, status)) => {
                    let (cursor, in_flight, failed) = (0, 0, false);
                    self.begin(
                        ActiveRequest {
                            chain,
                            request,
                            status,
                            cursor,
                            in_flight,
                            failed,
                        },
                        cx,
                    )?;
                }
                Err(_) => {
                    self.metrics.malformed.add(1);
                    queue.add_used(cx.memory, chain.head, 0)?;
                    self.used = true;
                    self.spare_chains.push(chain);
                }
            }
        }
        Ok(())
    }

    /// Puts a request into a slot, or aside if it has to wait.
    fn begin(
        &mut self,
        active: ActiveRequest,
        cx: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        let free = self.active.iter().position(Option::is_none);
        let extent = ChangedExtent::of(active.request.action);
        let conflict = extent.is_some_and(|new| {
            let others = self.active.iter().flatten();
            others
                .filter_map(|a| ChangedExtent::of(a.request.action))
                .any(|old| old.conflicts(new))
        });
        match free {
            Some(slot) if !conflict => {
                self.count(active.request.action);
                self.active[slot] = Some(active);
                self.advance(slot, cx)
            }
            _ => {
                self.stalled = Some(active);
                Ok(())
            }
        }
    }

    fn count(&self, action: DiskAction) {
        let metrics = &self.metrics;
        let bytes = |len: usize| u64::try_from(len).unwrap_or(0);
        match action {
            DiskAction::Read { len, .. } => {
                metrics.reads.add(1);
                metrics.read_bytes.add(bytes(len));
            }
            DiskAction::Write { len, .. } => {
                metrics.writes.add(1);
                metrics.written_bytes.add(bytes(len));
            }
            DiskAction::Flush => metrics.flushes.add(1),
            DiskAction::Discard { .. } | DiskAction::Zero { .. } => metrics.discards.add(1),
            DiskAction::GetId => {}
            DiskAction::Refuse(_) => metrics.malformed.add(1),
        }
    }

    /// Issues what the window allows; ends the request when all is done.
    fn advance(&mut self, slot: usize, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        loop {
            let Some(active) = self.active[slot].as_ref() else {
                return Ok(());
            };
            let (offset, len) = match active.request.action {
                DiskAction::Read { offset, len } | DiskAction::Write { offset, len } => {
                    (offset, u64::try_from(len).map_err(|_| BrokenQueue)?)
                }
                DiskAction::Zero { offset, len } => (offset, len),
                DiskAction::Discard { offset, len } => whole_blocks(offset, len),
                DiskAction::Flush | DiskAction::GetId | DiskAction::Refuse(_) => (0, 0),
            };
            let left = if active.failed {
                0
            } else {
                len - active.cursor
            };
            if left == 0 && active.in_flight == 0 {
                return self.finish(slot, cx);
            }
            if left == 0 || active.in_flight == WINDOW {
                return Ok(());
            }
            let at = active.cursor;
            let op = match active.request.action {
                DiskAction::Read { .. } => {
                    let run = self.map.run(offset + at, left);
                    DiskOp {
                        slot,
                        step: OpStep::Read(run.source),
                        offset: run.offset,
                        at,
                        len: run.len,
                    }
                }
                action => self.write_op(slot, action, offset + at, at, left),
            };
            if let Some(active) = self.active[slot].as_mut() {
                active.cursor += op.len;
            }
            self.issue(op, Vec::new(), cx)?;
        }
    }

    /// The next operation of a request that changes `left` bytes from `offset` on.
    fn write_op(&self, slot: usize, action: DiskAction, offset: u64, at: u64, left: u64) -> DiskOp {
        let (step, len) = if offset.is_multiple_of(BLOCK) && left >= BLOCK {
            let erase = !matches!(action, DiskAction::Write { .. });
            (
                if erase { OpStep::Punch } else { OpStep::Write },
                left - left % BLOCK,
            )
        } else {
            let len = left.min(BLOCK - offset % BLOCK);
            match self.map.run(offset - offset % BLOCK, BLOCK).source {
                BlockSource::Layer => (OpStep::Write, len),
                below => (OpStep::Fill(below), len),
            }
        };
        DiskOp {
            slot,
            step,
            offset,
            at,
            len,
        }
    }

    /// Gives an operation to the ring, or does at once what needs no file. `buffer` is the filled
    /// block for [`OpStep::WriteFilled`].
    fn issue(
        &mut self,
        op: DiskOp,
        buffer: Vec<u8>,
        cx: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        let mut pieces = self.spare_pieces.pop().unwrap_or_default();
        let Some(active) = self.active[op.slot].as_mut() else {
            return Ok(());
        };
        let at = usize::try_from(op.at).map_err(|_| BrokenQueue)?;
        let len = usize::try_from(op.len).map_err(|_| BrokenQueue)?;
        match op.step {
            OpStep::Read(BlockSource::Zeros) => {
                for start in (0..len).step_by(BLOCK_LEN) {
                    let zeros = &ZEROS[..BLOCK_LEN.min(len - start)];
                    chain::write(cx.memory, &active.chain.writable, at + start, zeros)
                        .map_err(|_| BrokenQueue)?;
                }
                return Ok(());
            }
            OpStep::Read(_) => pieces.extend(chain::pieces(&active.chain.writable, at, len)),
            OpStep::Write if matches!(active.request.action, DiskAction::Write { .. }) => {
                pieces.extend(chain::pieces(&active.chain.readable, HEADER_LEN + at, len));
            }
            OpStep::Write => pieces.push(IoPiece::Owned {
                bytes: vec![0; len],
                start: 0,
            }),
            OpStep::Fill(BlockSource::Zeros) => {
                return self.filled(op, vec![0; BLOCK_LEN], cx);
            }
            OpStep::Fill(_) => pieces.push(IoPiece::Owned {
                bytes: vec![0; BLOCK_LEN],
                start: 0,
            }),
            OpStep::WriteFilled => pieces.push(IoPiece::Owned {
                bytes: buffer,
                start: 0,
            }),
            OpStep::Punch => {}
        }
        active.in_flight += 1;
        self.submit(op, pieces, cx)
    }

    /// The file of a source that is not the layer.
    fn below(&self, source: BlockSource) -> BorrowedFd<'_> {
        let parent = self
            .parent
            .as_deref()
            .filter(|_| source == BlockSource::Parent);
        parent.unwrap_or(&self.base).as_fd()
    }

    fn submit(
        &mut self,
        op: DiskOp,
        pieces: Vec<IoPiece>,
        cx: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        let index = self
            .ops
            .iter()
            .position(Option::is_none)
            .unwrap_or_else(|| {
                self.ops.push(None);
                self.ops.len() - 1
            });
        let key = u32::try_from(index).map_err(|_| BrokenQueue)?;
        let block = op.offset - op.offset % BLOCK;
        let layer = self.layer.as_deref().unwrap_or(&self.base).as_fd();
        let pushed = match op.step {
            OpStep::Read(BlockSource::Layer) => cx.read(layer, pieces, op.offset, key)?,
            OpStep::Read(source) => cx.read(self.below(source), pieces, op.offset, key)?,
            OpStep::Fill(source) => cx.read(self.below(source), pieces, block, key)?,
            OpStep::Write => cx.write(layer, pieces, op.offset, key)?,
            OpStep::WriteFilled => cx.write(layer, pieces, block, key)?,
            OpStep::Punch => {
                cx.punch_hole(layer, op.offset, op.len, key)?;
                Ok(())
            }
        };
        match pushed {
            Ok(()) => self.ops[index] = Some(op),
            Err(_) => {
                // A descriptor that points outside the guest's memory: fail the request.
                let Some(active) = self.active[op.slot].as_mut() else {
                    return Ok(());
                };
                active.in_flight -= 1;
                active.failed = true;
            }
        }
        Ok(())
    }

    /// The image's block is in `buffer`: lays the request's bytes over it and writes it.
    fn filled(
        &mut self,
        op: DiskOp,
        mut buffer: Vec<u8>,
        cx: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        let Some(active) = self.active[op.slot].as_mut() else {
            return Ok(());
        };
        let to = |n: u64| usize::try_from(n).map_err(|_| BrokenQueue);
        let (from, len, at) = (to(op.offset % BLOCK)?, to(op.len)?, to(op.at)?);
        let part = buffer.get_mut(from..from + len).ok_or(BrokenQueue)?;
        if matches!(active.request.action, DiskAction::Write { .. }) {
            chain::read(cx.memory, &active.chain.readable, HEADER_LEN + at, part)
                .map_err(|_| BrokenQueue)?;
        } else {
            part.fill(0);
        }
        self.issue(
            DiskOp {
                step: OpStep::WriteFilled,
                ..op
            },
            buffer,
            cx,
        )
    }

    fn completed(
        &mut self,
        op: DiskOp,
        done: OpCompletion,
        cx: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        let Some(active) = self.active[op.slot].as_mut() else {
            return Ok(());
        };
        if held::has_no_room(&done) && op.step.changes_layer() && !active.failed {
            self.held.hold(op, done.pieces, cx.now);
            self.metrics.held.set(self.held.count());
            return Ok(());
        }
        active.in_flight -= 1;
        let moved = match done.result {
            Ok(n) => u64::from(n),
            Err(errno) => {
                active.failed = true;
                if !mem::replace(&mut self.error_logged, true) {
                    tracing::warn!(?errno, step = ?op.step, offset = op.offset, "Disk I/O failed");
                }
                return Ok(());
            }
        };
        let block = op.offset / BLOCK;
        let failed = active.failed;
        match op.step {
            OpStep::Fill(source) => {
                let expected = match source {
                    BlockSource::Base => BLOCK.min(self.base_len.saturating_sub(block * BLOCK)),
                    _ => BLOCK,
                };
                match done.pieces.into_iter().next() {
                    // A failed request, also one that a reset ended, touches nothing more.
                    Some(IoPiece::Owned { bytes, .. }) if moved >= expected && !active.failed => {
                        self.filled(op, bytes, cx)?;
                    }
                    _ => active.failed = true,
                }
            }
            OpStep::WriteFilled if moved == BLOCK => self.map.insert(block..block + 1),
            OpStep::Punch => self.map.insert(block..block + op.len / BLOCK),
            OpStep::Read(_) | OpStep::Write if moved > 0 && moved <= op.len => {
                let mut pieces = done.pieces;
                pieces.clear();
                self.spare_pieces.push(pieces);
                if op.step == OpStep::Write {
                    // Only blocks of which the last byte is in: a partial one was in before.
                    self.map.insert(block..(op.offset + moved) / BLOCK);
                }
                if moved < op.len && !failed {
                    let (offset, at) = (op.offset + moved, op.at + moved);
                    self.issue(
                        DiskOp {
                            offset,
                            at,
                            len: op.len - moved,
                            ..op
                        },
                        Vec::new(),
                        cx,
                    )?;
                }
            }
            OpStep::WriteFilled | OpStep::Read(_) | OpStep::Write => active.failed = true,
        }
        Ok(())
    }

    /// Tries again what was held, when it is time.
    fn retry(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        for (op, buffer) in self.held.due(cx.now) {
            if let Some(active) = self.active[op.slot].as_mut() {
                active.in_flight -= 1;
                self.issue(op, buffer, cx)?;
                self.advance(op.slot, cx)?;
            }
        }
        self.held.note(cx.now);
        self.metrics.held.set(self.held.count());
        Ok(())
    }

    fn finish(&mut self, slot: usize, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        let Some(active) = self.active[slot].take() else {
            return Ok(());
        };
        let ActiveRequest {
            chain,
            request,
            status,
            failed,
            ..
        } = active;
        let mut written = 1;
        let code = match request.action {
            _ if failed => S_IOERR,
            DiskAction::Refuse(code) => code,
            DiskAction::Read { len, .. } => {
                written += u32::try_from(len).map_err(|_| BrokenQueue)?;
                S_OK
            }
            DiskAction::GetId => {
                chain::write(cx.memory, &chain.writable, 0, &self.serial)
                    .map_err(|_| BrokenQueue)?;
                written += u32::try_from(ID_LEN).map_err(|_| BrokenQueue)?;
                S_OK
            }
            _ => S_OK,
        };
        if failed {
            self.metrics.errors.add(1);
        }
        self.metrics.layer_blocks.set(self.map.count());
        if let Some(queue) = &mut self.queue {
            cx.memory.write_obj(code, status).map_err(|_| BrokenQueue)?;
            queue.add_used(cx.memory, chain.head, written)?;
            self.used = true;
        }
        self.spare_chains.push(chain);
        Ok(())
    }
}

/// The whole blocks inside a range.
fn whole_blocks(offset: u64, len: u64) -> (u64, u64) {
    let start = offset.next_multiple_of(BLOCK);
    let end = (offset + len) / BLOCK * BLOCK;
    (start, end.saturating_sub(start))
}

impl Device for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind {
            tag: 1,
            name: "block device",
        }
    }

    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity {
            device_id: DEVICE_ID,
            features: F_EVENT_IDX | F_INDIRECT_DESC | config::features(self.disk),
            queue_sizes: QUEUE_SIZES,
            config: config::space(self.disk).into(),
        }
    }

    fn start(
        &mut self,
        queues: Vec<Option<Queue>>,
        _: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        self.queue = queues.into_iter().next().flatten();
        self.kicked = true;
        Ok(())
    }

    fn kick(&mut self, _: usize, _: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        self.kicked = true;
        Ok(())
    }

    fn complete(
        &mut self,
        done: OpCompletion,
        cx: &mut DeviceContext<'_>,
    ) -> Result<(), DeviceFault> {
        let index = usize::try_from(done.token.key).unwrap_or(usize::MAX);
        let Some(op) = self.ops.get_mut(index).and_then(Option::take) else {
            return Ok(());
        };
        self.completed(op, done, cx)?;
        self.advance(op.slot, cx)
    }

    fn deadline(&self) -> Option<Instant> {
        self.held.retry_at()
    }

    fn turn(&mut self, cx: &mut DeviceContext<'_>) -> Result<NextTurn, DeviceFault> {
        self.retry(cx)?;
        self.take_requests(cx)?;
        self.report(cx)?;
        let room = self.active.iter().any(Option::is_none);
        let more = self.kicked && self.stalled.is_none() && room;
        Ok(if more {
            NextTurn::Again
        } else {
            NextTurn::Wait
        })
    }

    fn stop(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        self.queue = None;
        self.stalled = None;
        self.kicked = false;
        // What has been issued ends by itself; nothing more of these requests begins.
        self.active
            .iter_mut()
            .flatten()
            .for_each(|a| a.failed = true);
        for op in self.held.drop_all() {
            if let Some(active) = self.active[op.slot].as_mut() {
                active.in_flight -= 1;
                self.advance(op.slot, cx)?;
            }
        }
        Ok(())
    }

    fn drained(&self) -> bool {
        self.ops.iter().all(Option::is_none)
    }

    fn reset(&mut self, attachment: Attachment) -> std::io::Result<()> {
        let DiskParent(parent) = attachment.take()?;
        if let Some(layer) = &self.layer {
            layer.set_len(0)?;
            layer.set_len(self.disk.size)?;
        }
        self.parent = parent.map(Arc::new);
        self.map = BlockMap::new(self.disk.size, self.base_len);
        self.active.iter_mut().for_each(|active| *active = None);
        self.used = false;
        self.error_logged = false;
        self.metrics.layer_blocks.set(0);
        Ok(())
    }

    fn settle(&mut self, cx: &mut DeviceContext<'_>) -> Result<(), DeviceFault> {
        if let Some(active) = self.stalled.take() {
            self.begin(active, cx)?;
        }
        self.report(cx)
    }

    fn settled(&self) -> bool {
        self.drained() && self.stalled.is_none() && self.active.iter().all(Option::is_none)
    }

    fn queues(&self) -> Vec<Option<&Queue>> {
        vec![self.queue.as_ref()]
    }

    fn save(&self, _: bool, into: Vec<u8>) -> postcard::Result<Vec<u8>> {
        let saved = state::save(&self.map, self.disk.size, self.base_len);
        postcard::to_extend(&saved, into)
    }

    /// What was in the layer and its parent then is in the parent now.
    fn load(&mut self, saved: &mut &[u8]) -> Result<(), StateRefusal> {
        let saved: BlockV1 = take(saved)?;
        let runs = state::check(&saved, self.disk.size, self.base_len)?;
        if self.parent.is_none() && !runs.is_empty() {
            return Err(InvalidState("blocks of a snapshot without its layer".into()).into());
        }
        self.map.set_parent(&runs);
        Ok(())
    }

    fn contents(&self) -> Option<Box<dyn Contents>> {
        Some(Box::new(DiskLayers {
            layer: self.layer.clone(),
            parent: self.parent.clone(),
            map: self.map.clone(),
            size: self.disk.size,
        }))
    }
}

//! What the file goes through: age, too many bytes, damage, a full disk.

use crate::realistic::Traffic;
use crate::support::{
    Clock, Folder, Said, child, count, found, on_disk, root, settled, skipped, spans_of, tell, until,
};
use bytes::Bytes;
use std::process::Command;
use std::time::Duration;
use throughline_flow::engine::{Engine, OpenError, Options, Refused, TraceQuery};
use throughline_flow::store::FILE;

fn pour(engine: &Engine, traffic: &mut Traffic, spans: u64) {
    for message in traffic.messages(spans) {
        let body = Bytes::from(message.body);
        while engine.spans(body.clone()) == Err(Refused::Busy) {
            std::thread::yield_now();
        }
    }
    engine.flush();
}

#[test]
fn what_is_too_old_goes_and_the_rest_stays() {
    let (folder, clock) = (Folder::new(), Clock::new());
    let engine = clock.engine(Options { keep_for: Duration::from_secs(3600), ..on_disk(&folder) });
    tell(&engine, &[root(1)]);
    clock.forward(Duration::from_secs(2000));
    tell(&engine, &[root(2)]);
    clock.forward(Duration::from_secs(2000));
    until("the first one goes", || count(&engine.books().expired, "age") == 1);
    assert_eq!(found(&engine, &TraceQuery::default(), 1..3), [2]);
    assert_eq!((spans_of(&engine, 1).len(), spans_of(&engine, 2).len()), (0, 1));
    engine.close();
    assert_eq!(found(&clock.engine(on_disk(&folder)), &TraceQuery::default(), 1..3), [2]);
}

#[test]
fn the_file_stays_within_its_bytes_and_keeps_what_is_newest() {
    let (folder, clock) = (Folder::new(), Clock::new());
    let engine = clock.engine(Options { disk_bytes_max: 3 << 20, ..on_disk(&folder) });
    let mut traffic = Traffic::new(11, 50, 1000);
    for _ in 0..12 {
        pour(&engine, &mut traffic, 15_000);
        clock.forward(Duration::from_secs(15));
    }
    until("old blocks go", || engine.books().disk_bytes <= 3 << 20);
    let books = settled(&engine);
    assert!(count(&books.expired, "bytes") > 50_000, "{books:?}");
    let newest = engine.find(&TraceQuery { limit: 1, ..TraceQuery::default() }).unwrap().traces.remove(0);
    assert!(traffic.now() - newest.start_unix_nanos < 1_000_000_000);
    engine.close();
    assert!(std::fs::metadata(folder.path().join(FILE)).unwrap().len() < 6 << 20);
}

#[test]
fn memory_alone_keeps_to_its_bytes_and_counts_what_goes() {
    let clock = Clock::new();
    let engine = clock.engine(Options { memory_bytes_max: 2 << 20, ..Options::default() });
    let mut traffic = Traffic::new(12, 50, 1000);
    for _ in 0..10 {
        pour(&engine, &mut traffic, 15_000);
        clock.forward(Duration::from_secs(15));
    }
    until("old blocks go", || engine.books().memory_bytes <= 2 << 20);
    let books = settled(&engine);
    assert!(count(&books.expired, "bytes") > 50_000 && books.disk_bytes == 0, "{books:?}");
    assert!(!engine.find(&TraceQuery::default()).unwrap().traces.is_empty());
}

#[test]
fn a_damaged_block_is_named_and_the_others_still_answer() {
    let (folder, clock, said) = (Folder::new(), Clock::new(), Said::default());
    let engine = clock.engine(on_disk(&folder));
    tell(&engine, &[root(1), child(1, 2, "stock")]);
    tell(&engine, &[root(2)]);
    tell(&engine, &[root(3)]);
    engine.close();
    drop(engine);
    // A bit of the group with the first trace's spans, and the whole index of the second.
    let file = rusqlite::Connection::open(folder.path().join(FILE)).unwrap();
    let blocks: Vec<i64> = file
        .prepare("SELECT id FROM block ORDER BY id")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let group = blocks[0] * 65536 + 2;
    let mut body: Vec<u8> =
        file.query_row("SELECT body FROM part WHERE id = ?", [group], |row| row.get(0)).unwrap();
    let middle = body.len() / 2;
    body[middle] ^= 4;
    file.execute("UPDATE part SET body = ? WHERE id = ?", rusqlite::params![body, group]).unwrap();
    file.execute("DELETE FROM part WHERE id = ?", [blocks[1] * 65536]).unwrap();
    drop(file);
    let engine = clock.engine(Options { log: said.log(), ..on_disk(&folder) });
    assert!(spans_of(&engine, 1).is_empty());
    assert_eq!(found(&engine, &TraceQuery::default(), 1..4), [3]);
    assert_eq!(spans_of(&engine, 3).len(), 1);
    assert_eq!(engine.books().blocks_damaged, 2);
    // Each once, however often it is asked.
    assert!(spans_of(&engine, 1).is_empty());
    let said = said.all();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0].contains("Group(0): its checksum is wrong") && said[1].contains("Index: it is missing"),
        "{said:?}"
    );
    tell(&engine, &[root(4)]);
    assert_eq!(found(&engine, &TraceQuery::default(), 1..5), [4, 3]);
}

/// Fills a piece of the file with garbage.
fn spoil(path: &std::path::Path, from: usize, len: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[from..from + len].fill(0xa5);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn pages_of_a_block_that_are_garbage_stop_neither_start_nor_the_other_answers() {
    let (folder, clock, said) = (Folder::new(), Clock::new(), Said::default());
    let engine = clock.engine(on_disk(&folder));
    let mut traffic = Traffic::new(14, 50, 1000);
    pour(&engine, &mut traffic, 9_000);
    pour(&engine, &mut traffic, 9_000);
    engine.close();
    drop(engine);
    let path = folder.path().join(FILE);
    let file = rusqlite::Connection::open(&path).unwrap();
    let body: Vec<u8> = file
        .query_row("SELECT body FROM part WHERE id % 65536 = 2 ORDER BY id LIMIT 1", [], |row| row.get(0))
        .unwrap();
    drop(file);
    let bytes = std::fs::read(&path).unwrap();
    let piece = &body[40_000..40_300];
    let at = bytes.windows(piece.len()).position(|window| window == piece).unwrap();
    spoil(&path, at, 20_000);
    let engine = clock.engine(Options { log: said.log(), ..on_disk(&folder) });
    let traces = engine.find(&TraceQuery { limit: 100_000, ..TraceQuery::default() }).unwrap().traces;
    let traces: Vec<_> = traces.iter().step_by(30).collect();
    let readable = traces.iter().filter(|trace| engine.trace(trace.trace_id).unwrap().is_some()).count();
    assert!(readable > 0 && readable < traces.len(), "{readable} of {}", traces.len());
    assert!((1..4).contains(&engine.books().blocks_damaged), "{:?}", said.all());
    assert!(said.all()[0].contains("is damaged"), "{:?}", said.all());
    tell(&engine, &[root(1)]);
    assert_eq!(spans_of(&engine, 1), [1001]);
}

#[test]
fn a_file_whose_list_of_blocks_is_garbage_is_put_aside_and_named() {
    let (folder, clock, said) = (Folder::new(), Clock::new(), Said::default());
    let engine = clock.engine(on_disk(&folder));
    tell(&engine, &[root(1)]);
    engine.close();
    drop(engine);
    let path = folder.path().join(FILE);
    let file = rusqlite::Connection::open(&path).unwrap();
    let page: u32 = file
        .query_row("SELECT rootpage FROM sqlite_master WHERE name = 'block'", [], |row| row.get(0))
        .unwrap();
    drop(file);
    spoil(&path, (page as usize - 1) * 4096, 4096);
    let engine = clock.engine(Options { log: said.log(), ..on_disk(&folder) });
    assert!(said.all()[0].contains("is kept as") && said.all()[0].contains("malformed"), "{:?}", said.all());
    tell(&engine, &[root(2)]);
    assert_eq!(found(&engine, &TraceQuery::default(), 1..3), [2]);
    let aside = |name: &std::ffi::OsStr| name.to_string_lossy().contains("damaged-");
    assert!(std::fs::read_dir(folder.path()).unwrap().any(|entry| aside(&entry.unwrap().file_name())));
}

#[test]
fn a_file_that_another_process_writes_and_one_that_is_none_are_refused_by_name() {
    let (folder, clock) = (Folder::new(), Clock::new());
    let first = clock.engine(on_disk(&folder));
    let Err(OpenError::File(path, why)) = Engine::open(on_disk(&folder), || 0) else {
        panic!("opened twice")
    };
    assert!(path.ends_with(FILE) && why == "another process writes it", "{why}");
    drop(first);
    std::fs::write(folder.path().join(FILE), [0x55; 8192]).unwrap();
    let Err(OpenError::File(_, why)) = Engine::open(on_disk(&folder), || 0) else { panic!("opened") };
    assert!(why.contains("not a database"), "{why}");
}

/// A small file system that is gone afterwards.
struct Small(Folder);

impl Small {
    fn mount() -> Option<Self> {
        let folder = Folder::new();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"])
            .arg(folder.path())
            .output()
            .is_ok_and(|output| output.status.success());
        mounted.then_some(Self(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0.path()).output());
    }
}

#[test]
fn a_full_disk_is_named_stops_nothing_and_ends_when_there_is_room() {
    let Some(small) = Small::mount() else {
        return skipped("a small file system can be mounted by root only");
    };
    let (clock, said) = (Clock::new(), Said::default());
    let engine = clock.engine(Options { log: said.log(), ..on_disk(&small.0) });
    let mut traffic = Traffic::new(13, 50, 1000);
    pour(&engine, &mut traffic, 3_000);
    // Somebody else takes what is left.
    let ballast = small.0.path().join("ballast");
    let full = (0..100).any(|_| {
        use std::io::Write;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&ballast);
        file.and_then(|mut file| file.write_all(&[0; 100_000])).is_err()
    });
    assert!(full);
    let mut written = 0;
    until("the disk is full", || {
        pour(&engine, &mut traffic, 3_000);
        written += 3_000;
        engine.books().trouble.is_some() || written > 2_000_000
    });
    let books = engine.books();
    assert!(books.trouble.is_some_and(|why| why.contains("full")), "{:?}", said.all());
    assert!(said.all().iter().any(|sentence| sentence.contains("can't be written")), "{:?}", said.all());
    // What is not written is held, and still answers.
    let newest = engine.find(&TraceQuery { limit: 1, ..TraceQuery::default() }).unwrap().traces.remove(0);
    assert!(engine.trace(newest.trace_id).unwrap().is_some());
    std::fs::remove_file(&ballast).unwrap();
    until("the file can be written again", || engine.books().trouble.is_none() && engine.books().held == 0);
    let books = settled(&engine);
    assert_eq!(count(&books.dropped, "not_written"), 0, "{books:?}");
    assert!(said.all().iter().any(|sentence| sentence.contains("can be written again")));
    engine.close();
    let engine = clock.engine(on_disk(&small.0));
    assert!(engine.trace(newest.trace_id).unwrap().is_some());
}

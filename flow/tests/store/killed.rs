//! A process that is killed while it writes.

use crate::support::{Folder, id, message, on_disk, root, spans_of};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use throughline_flow::engine::{Engine, Options};
use throughline_flow::store::FILE;

const FOLDER: &str = "THROUGHLINE_FLOW_KILLED_FOLDER";

fn now() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

#[test]
#[ignore = "is the process that the next scenario kills"]
fn the_process_that_is_killed() {
    let folder = std::env::var(FOLDER).expect("run by the next scenario only");
    let options = Options { shards: 2, data_dir: Some(folder.into()), ..Options::default() };
    let engine = Engine::open(options, now).unwrap();
    for trace in 1..1_000_000 {
        engine.spans(message(&[root(trace)])).unwrap();
        println!("took {trace}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_kill_loses_the_last_second_at_the_most_and_never_the_file() {
    let folder = Folder::new();
    for round in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "killed::the_process_that_is_killed", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let took = lines
            .filter_map(|line| Some((line.rsplit_once("took ")?.1.parse::<u64>().ok()?, Instant::now())));
        // Until well after a commit or two; where it stops is different each time.
        let mut all: Vec<(u64, Instant)> = Vec::new();
        for one in took {
            all.push(one);
            if all[0].1.elapsed() > Duration::from_millis(2_500 + 170 * round) {
                break;
            }
        }
        child.kill().unwrap();
        let killed = Instant::now();
        child.wait().unwrap();
        let file = rusqlite::Connection::open(folder.path().join(FILE)).unwrap();
        let whole: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(whole, "ok");
        drop(file);
        let engine = Engine::open(on_disk(&folder), now).unwrap();
        let old = all.iter().filter(|(_, at)| killed.duration_since(*at) > Duration::from_secs(1)).count();
        assert!(old > 20, "{old} spans only");
        for (trace, at) in all.iter().step_by(7) {
            if killed.duration_since(*at) > Duration::from_secs(1) {
                assert_eq!(spans_of(&engine, *trace).len(), 1, "span {trace} of {}", all.len());
            }
        }
        assert!(engine.trace(id(0)).unwrap().is_none());
        engine.close();
    }
}

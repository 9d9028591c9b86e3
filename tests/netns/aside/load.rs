//! Much traffic.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use prestack_testbed::{TcpClient, UdpClient};
use prestack_tests::stage::set;

/// What clients ask for, waiting for each answer.
pub trait Load: Send {
    fn ask(&mut self) -> Result<()>;
}

/// Connections that write what nobody else does.
pub struct Writers(pub Vec<TcpClient>);

impl Load for Writers {
    fn ask(&mut self) -> Result<()> {
        let write = set(b"load", b"value");
        for client in &mut self.0 {
            client.send(&write)?;
        }
        for client in &mut self.0 {
            ensure!(client.line()? == b"STORED\r\n");
        }
        Ok(())
    }
}

/// Connections that ask for what is not there.
pub struct Missing(pub Vec<TcpClient>);

impl Load for Missing {
    fn ask(&mut self) -> Result<()> {
        for client in &mut self.0 {
            client.send(b"get absent\r\n")?;
        }
        for client in &mut self.0 {
            ensure!(client.line()? == b"END\r\n");
        }
        Ok(())
    }
}

/// A reader over UDP of what is there, or of what is not.
pub struct Reader<'a> {
    pub client: UdpClient,
    pub hits: &'a AtomicBool,
}

impl Load for Reader<'_> {
    fn ask(&mut self) -> Result<()> {
        if self.hits.load(Ordering::Relaxed) {
            ensure!(self.client.get(b"there")?.is_some());
        } else {
            ensure!(self.client.get(b"absent")?.is_none());
        }
        Ok(())
    }
}

/// Tells loads to stop, after a panic too.
struct Stopping<'a>(&'a AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `check` while this load asks for as much as it can until told to stop.
pub fn under<'a>(
    loads: Vec<Box<dyn Load + 'a>>,
    stop: &AtomicBool,
    check: impl FnOnce() -> Result<()>,
) -> Result<()> {
    thread::scope(|scope| {
        let stopping = Stopping(stop);
        let threads: Vec<_> = loads
            .into_iter()
            .map(|mut load| {
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        load.ask()?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        let checked = check();
        drop(stopping);
        for thread in threads {
            thread.join().expect("the load does not panic")?;
        }
        checked
    })
}

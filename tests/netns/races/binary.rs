//! Random commands of the binary protocol.

use prestack_tests::binary::{COUNT, EXPIRED, Opcode, STORAGE, frame};

use super::command::{Action, Command, Shape};
use super::keys::{self, KINDS, Kind};
use super::source::{Source, Way};

impl Source {
    fn request(
        &mut self,
        [loud, quiet]: [Opcode; 2],
        is_quiet: bool,
        [extras, key, value]: [&[u8]; 3],
        cas: u64,
        action: Action,
    ) -> Command {
        self.opaque += 1;
        let opcode = if is_quiet { quiet } else { loud };
        let parts = [extras, key, value];
        Command {
            bytes: frame([0x80, opcode as u8], 0, parts, self.opaque, cas),
            action,
            shape: if is_quiet {
                Shape::Silent
            } else {
                Shape::Binary(self.opaque)
            },
        }
    }

    pub(super) fn binary_noop(&mut self) -> Command {
        let noop = [Opcode::Noop; 2];
        self.request(noop, false, [&[]; 3], 0, Action::Nothing)
    }

    pub(super) fn binary_flush(&mut self, is_quiet: bool) -> Command {
        let flush = [Opcode::Flush, Opcode::FlushQ];
        self.request(flush, is_quiet, [&[]; 3], 0, Action::Flush)
    }

    pub(super) fn binary_get(&mut self, key: usize) -> Command {
        let opcode = [Opcode::Get, Opcode::GetK][self.random.usize(..2)];
        let parts: [&[u8]; 3] = [&[], &keys::name(key), &[]];
        self.request([opcode; 2], false, parts, 0, Action::Read(vec![key]))
    }

    pub(super) fn binary_write(&mut self, key: usize, is_quiet: bool, way: Way) -> Command {
        let name = keys::name(key);
        let step = Action::Step(key);
        match KINDS[key] {
            Kind::Up => {
                let opcodes = [Opcode::Increment, Opcode::IncrementQ];
                return self.request(opcodes, is_quiet, [&COUNT, &name, &[]], 0, step);
            }
            Kind::Down => {
                let opcodes = [Opcode::Decrement, Opcode::DecrementQ];
                return self.request(opcodes, is_quiet, [&COUNT, &name, &[]], 0, step);
            }
            Kind::Grown => {
                let opcodes = if self.random.bool() {
                    [Opcode::Append, Opcode::AppendQ]
                } else {
                    [Opcode::Prepend, Opcode::PrependQ]
                };
                return self.request(opcodes, is_quiet, [&[], &name, b"+"], 0, step);
            }
            Kind::Register => {}
        }
        let remove = Action::Remove { key, shows: false };
        let choice = self.random.u8(..14);
        match choice {
            0 | 1 => {
                let opcodes = [Opcode::Delete, Opcode::DeleteQ];
                return self.request(opcodes, is_quiet, [&[], &name, &[]], 0, remove);
            }
            2 if !is_quiet => {
                let opcodes = [Opcode::Touch; 2];
                return self.request(opcodes, false, [&EXPIRED, &name, &[]], 0, remove);
            }
            3 if !is_quiet => {
                let opcodes = [Opcode::Touch; 2];
                return self.request(opcodes, false, [&[0; 4], &name, &[]], 0, Action::Nothing);
            }
            4 => {
                let read = if is_quiet {
                    Action::Nothing
                } else {
                    Action::Read(vec![key])
                };
                let opcodes = [Opcode::Gat, Opcode::GatQ];
                return self.request(opcodes, is_quiet, [&[0; 4], &name, &[]], 0, read);
            }
            5 => {
                let opcodes = [Opcode::GatK, Opcode::GatKQ];
                let shows = Action::Remove { key, shows: true };
                return self.request(opcodes, is_quiet, [&EXPIRED, &name, &[]], 0, shows);
            }
            _ => {}
        }
        let number = self.number(way);
        let value = keys::value(number);
        let write = Action::Write { key, number };
        let (opcodes, cas) = match choice {
            6 => ([Opcode::Add, Opcode::AddQ], 0),
            7 | 8 => ([Opcode::Replace, Opcode::ReplaceQ], 0),
            9 if key < self.cas.len() => ([Opcode::Set, Opcode::SetQ], self.cas[key]),
            _ => ([Opcode::Set, Opcode::SetQ], 0),
        };
        self.request(opcodes, is_quiet, [&STORAGE, &name, &value], cas, write)
    }
}

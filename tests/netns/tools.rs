//! The iptables programs of a node: a directory that comes first in the proxy's `PATH`.
//!
//! In it `iptables` is the legacy or the nft program, as the test wants it. A test can put a script
//! in the place of a program, to record what it is asked, to delay it, or to let it fail.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::world::Family;

/// The two kinds of iptables programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Those with tables of their own in the kernel.
    Legacy,
    /// Those that write nftables.
    Nft,
    /// The same, while the proxy does not use them: it is in nftables mode.
    Unused,
}

/// The programs of a node.
pub struct Tools {
    variant: Variant,
    bin: PathBuf,
}

/// What the programs are called after `iptables` and `ip6tables`.
const SUFFIXES: [&str; 3] = ["", "-save", "-restore"];

// === impl Variant ===

impl Variant {
    fn binary(self) -> PathBuf {
        let name = match self {
            Variant::Legacy => "xtables-legacy-multi",
            Variant::Nft | Variant::Unused => "xtables-nft-multi",
        };
        ["/usr/sbin", "/sbin", "/usr/local/sbin"]
            .iter()
            .map(|dir| Path::new(dir).join(name))
            .find(|path| path.exists())
            .unwrap_or_else(|| panic!("{name} is not there: install the package iptables"))
    }
}

// === impl Tools ===

impl Tools {
    /// Sets the programs up in a directory of their own in `dir`.
    pub fn install(variant: Variant, dir: &Path) -> Tools {
        let (bin, real) = (dir.join("bin"), dir.join("real"));
        fs::create_dir(&bin).unwrap();
        fs::create_dir(&real).unwrap();
        let binary = variant.binary();
        let tools = Tools { variant, bin };
        for family in Family::BOTH {
            for suffix in SUFFIXES {
                // The program knows from its name what it is to do.
                symlink(&binary, tools.real(family, suffix)).unwrap();
                symlink(&binary, tools.bin.join(name(family, suffix))).unwrap();
            }
        }
        tools
    }

    /// Whether the proxy programs nftables by itself.
    pub fn are_unused(&self) -> bool {
        self.variant == Variant::Unused
    }

    /// The `PATH` with these programs first.
    pub fn path_variable(&self) -> String {
        format!("{}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin", self.bin.display())
    }

    /// The file that legacy programs lock: not the host's.
    pub fn lock_file(&self) -> PathBuf {
        self.bin.with_file_name("xtables.lock")
    }

    /// The true program with this suffix (`""`, `-save`, `-restore`), whatever took its place.
    pub fn real(&self, family: Family, suffix: &str) -> String {
        self.bin.with_file_name("real").join(name(family, suffix)).display().to_string()
    }

    /// Puts a shell script in the place of a program of both families. In it `$REAL` is the true
    /// program, `$NAME` its name, and `$STATE` a directory for the script's own use, which is also
    /// given back.
    pub fn replace(&self, suffix: &str, script: &str) -> PathBuf {
        let state = self.bin.with_file_name(format!("state{suffix}"));
        fs::create_dir_all(&state).unwrap();
        for family in Family::BOTH {
            let (real, name) = (self.real(family, suffix), name(family, suffix));
            self.put(&name, &format!("REAL={real}\nNAME={name}\nSTATE={}\n{script}", state.display()));
        }
        state
    }

    /// Puts a shell script where the proxy finds it first.
    pub fn put(&self, name: &str, script: &str) {
        // Renamed into place, so that nobody ever starts half a script.
        let fresh = self.bin.join("fresh");
        fs::write(&fresh, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&fresh, self.bin.join(name)).unwrap();
    }

    /// Takes a script away again.
    pub fn restore(&self, suffix: &str) {
        for family in Family::BOTH {
            let fresh = self.bin.join("fresh");
            symlink(self.variant.binary(), &fresh).unwrap();
            fs::rename(&fresh, self.bin.join(name(family, suffix))).unwrap();
        }
    }
}

fn name(family: Family, suffix: &str) -> String {
    match family {
        Family::V4 => format!("iptables{suffix}"),
        Family::V6 => format!("ip6tables{suffix}"),
    }
}

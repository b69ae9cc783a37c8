//! The codes of errors, resets and farewells.

/// Declares a `u8` enum with its decoding.
macro_rules! codes {
    ($(#[$m:meta])* $name:ident { $($(#[$v:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$m])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$v])* $variant = $value,)* }

        impl $name {
            /// Every value, for tables and tests.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The number on the wire.
            #[must_use]
            pub const fn to_u8(self) -> u8 {
                match self { $(Self::$variant => $value,)* }
            }

            /// The value of a number, if it has one.
            #[must_use]
            pub const fn from_u8(v: u8) -> Option<Self> {
                match v { $($value => Some(Self::$variant),)* _ => None }
            }
        }
    };
}
pub(crate) use codes;

codes! {
    /// What went wrong with a request. `errno` beside it has the kernel's word where there is one.
    ErrorCode {
        /// None of the others; see the message.
        Io = 0,
        /// The file, directory or program does not exist.
        NotFound = 1,
        /// The kernel refused it.
        PermissionDenied = 2,
        /// Something of this name is there already.
        AlreadyExists = 3,
        /// A directory was needed, something else is there.
        NotADirectory = 4,
        /// A file was needed, a directory is there.
        IsADirectory = 5,
        /// Neither a regular file nor what else the request could use: a device, a FIFO, a socket.
        NotRegular = 6,
        /// The disk, the quota or the inode table is full.
        NoSpace = 7,
        /// The request makes no sense.
        InvalidArgument = 8,
        /// No such user in the guest.
        UnknownUser = 9,
        /// No process of this id that the agent started and that has not ended.
        NoSuchProcess = 10,
        /// The working directory does not exist or cannot be entered.
        BadCwd = 11,
        /// The program exists and cannot be executed (no permission, unknown format).
        NotExecutable = 12,
        /// A table of the agent is full: try again when something has ended.
        Busy = 13,
        /// Something is over a limit of the protocol, the agent or the kernel.
        TooLarge = 14,
        /// Too many symbolic links.
        Loop = 15,
        /// The file system is read-only.
        ReadOnly = 16,
        /// The guest is out of memory or processes.
        OutOfResources = 17,
        /// This agent cannot do it (for example test mode without a VM).
        Unsupported = 18,
    }
}

codes! {
    /// Why a stream was given up.
    ResetCode {
        /// The sender lost interest.
        Cancelled = 1,
        /// The peer sent more than it had credit for.
        FlowControl = 2,
        /// A frame made no sense on this stream.
        Protocol = 3,
        /// The sender failed.
        Internal = 4,
    }
}

codes! {
    /// Why a connection ends.
    GoAwayCode {
        /// The peer speaks another version.
        Version = 1,
        /// The peer sent what is not a frame or not a message.
        Protocol = 2,
        /// The agent is being shut down.
        Shutdown = 3,
    }
}

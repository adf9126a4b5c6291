//! How a call ended.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How a call ended. After anything but `CQC_OK`, `cqc_last_error` says why.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CqcStatus {
    /// It did what was asked for.
    Ok = 0,
    /// An argument is null, too small, or no UTF-8; a structure has an unknown size.
    Argument = 1,
    /// The artifact cannot be read, or is damaged.
    Artifact = 2,
    /// The artifact cannot do what is asked for.
    Request = 3,
    /// The progress callback said stop.
    Cancelled = 4,
    /// A mistake in the library. Handles that took part must be freed and not be used again.
    Internal = 5,
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Why a call failed.
pub struct Failed(pub CqcStatus, pub String);

impl Failed {
    pub fn argument(text: impl Into<String>) -> Failed {
        Failed(CqcStatus::Argument, text.into())
    }
}

/// Runs a call, keeps the text of its error for this thread.
pub fn guarded(call: impl FnOnce() -> Result<(), Failed>) -> CqcStatus {
    let ended = catch_unwind(AssertUnwindSafe(call));
    let Failed(status, text) = match ended {
        Ok(Ok(())) => return CqcStatus::Ok,
        Ok(Err(failed)) => failed,
        Err(_) => Failed(CqcStatus::Internal, "a mistake in the library; please report it".into()),
    };
    let text: Vec<u8> = text.into_bytes().into_iter().filter(|&b| b != 0).collect();
    LAST.with(|last| *last.borrow_mut() = CString::new(text).unwrap_or_default());
    status
}

/// What the last call of this thread that failed says, in English. Valid until the thread's next
/// call that fails.
#[unsafe(no_mangle)]
pub extern "C" fn cqc_last_error() -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}

//! What this thread's graph capture must know: that it is on, which modules the recorded kernels need, and which frees wait.

use std::cell::RefCell;
use std::sync::Arc;

use super::error::CudaError;
use super::module::ModuleHandle;

/// Modules whose code a graph launches; held until the graph is gone.
#[derive(Clone, Default)]
pub(super) struct KeptModules(Vec<Arc<ModuleHandle>>);

impl KeptModules {
    pub(super) fn keep(&mut self, module: &Arc<ModuleHandle>) {
        if !self.0.iter().any(|kept| Arc::ptr_eq(kept, module)) {
            self.0.push(Arc::clone(module));
        }
    }
}

/// State of a capture in progress on one thread.
#[derive(Default)]
pub(super) struct Capture {
    pub(super) modules: KeptModules,
    frees: Vec<Box<dyn FnOnce()>>,
}

thread_local! {
    static CURRENT: RefCell<Option<Capture>> = const { RefCell::new(None) };
}

/// Fails on a thread that is capturing: for operations a graph cannot record or that would invalidate it.
pub(super) fn refuse(what: &'static str) -> Result<(), CudaError> {
    match CURRENT.with_borrow(Option::is_some) {
        true => Err(CudaError::Capturing { what }),
        false => Ok(()),
    }
}

/// Starts this thread's capture state.
pub(super) fn begin() {
    CURRENT.set(Some(Capture::default()));
}

/// Ends this thread's capture, runs the frees put off meanwhile, and returns the modules to keep. Call it after the
/// driver's capture has ended.
pub(super) fn end() -> KeptModules {
    let Some(capture) = CURRENT.take() else { return KeptModules::default() };
    for free in capture.frees {
        free();
    }
    capture.modules
}

/// Notes that a captured launch uses `module`.
pub(super) fn keep(module: &Arc<ModuleHandle>) {
    CURRENT.with_borrow_mut(|current| {
        if let Some(capture) = current {
            capture.modules.keep(module);
        }
    });
}

/// Runs `free` now, or after the capture that is on: freeing would invalidate it.
pub(super) fn free_when_allowed(free: impl FnOnce() + 'static) {
    let mut free = Some(free);
    // A thread that is ending has no capture state left, and then nothing is being captured.
    let _ = CURRENT.try_with(|current| {
        if let Ok(mut current) = current.try_borrow_mut()
            && let Some(capture) = current.as_mut()
            && let Some(free) = free.take()
        {
            capture.frees.push(Box::new(free));
        }
    });
    if let Some(free) = free {
        free();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn frees_wait_for_the_end_of_the_capture() {
        let freed = Rc::new(Cell::new(0));
        let free = |freed: &Rc<Cell<i32>>| {
            let freed = Rc::clone(freed);
            move || freed.set(freed.get() + 1)
        };
        free_when_allowed(free(&freed));
        assert_eq!(freed.get(), 1);
        begin();
        free_when_allowed(free(&freed));
        free_when_allowed(free(&freed));
        assert_eq!(freed.get(), 1);
        end();
        assert_eq!(freed.get(), 3);
    }

    #[test]
    fn a_capturing_thread_refuses_and_others_do_not() {
        begin();
        let error = refuse("allocating device memory").unwrap_err();
        assert!(error.to_string().starts_with("allocating device memory is not possible while a CUDA graph"));
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(refuse("allocating device memory").is_ok()));
        });
        end();
        assert!(refuse("allocating device memory").is_ok());
    }
}

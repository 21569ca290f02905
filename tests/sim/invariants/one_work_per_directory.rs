//! I15: at most one of initdb, start, rewind and copy works on a data directory (reliability notes §1.11).

use matriarch::agent::core::Task;

use crate::world::World;

/// The rules begin a task.
pub fn looked_at(world: &mut World, i: usize, task: &Task) {
    let running = world.hosts[i].agent.as_ref().and_then(|a| a.task.as_ref()).map(|t| t.kind());
    if let Some(running) = running {
        let kind = task.kind();
        world.sky.told.broke("one_work_per_directory", || format!("{i} begins {kind} while {running} runs"));
    }
}

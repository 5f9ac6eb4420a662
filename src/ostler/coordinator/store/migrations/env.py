"""What Alembic runs: the migrations, on the connection and inside the transaction that `store.migrate` gives."""

from alembic import context

from ostler.coordinator.store.schema import metadata

# With DDL declared transactional and a transaction that is not its own, Alembic neither begins nor commits anything.
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()

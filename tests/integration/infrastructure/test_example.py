from tests.integration.infrastructure.service_factory import ProductionReadyTestBase
from tests.orders import order


class TestRepeats(ProductionReadyTestBase):
    async def test_a_repeat_is_suppressed_and_names_its_original(self) -> None:
        original, repeat = await self.place.publish(
            [order(1, order_id="A-1"), order(1, order_id="A-2")]
        )
        await self.services.get(
            "Intake"
        ).run()  # the worker's way through all six steps, to the stream's end
        [row] = await self.place.fetch("SELECT * FROM outcomes WHERE outcome = 'duplicate'")
        assert (row["entry_id"], row["order_id"], row["original_entry_id"]) == (
            repeat,
            "A-2",
            original,
        )

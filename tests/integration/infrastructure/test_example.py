from tests.integration.infrastructure.service_factory import ProductionReadyTestBase
from tests.orders import order


class TestRepeats(ProductionReadyTestBase):
    async def test_a_repeat_names_its_original(self) -> None:
        original, repeat = await self.place.publish([order(1), order(1)])
        await self.services.get("Intake").run()  # all six steps, to the stream's end
        [row] = await self.place.fetch("SELECT * FROM outcomes WHERE outcome = 'duplicate'")
        assert (row["entry_id"], row["original_entry_id"]) == (repeat, original)
